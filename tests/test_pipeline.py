"""What a run's folder shows at its top, of tiny runs that go on by another recipe, fail or are stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import small_recipe

from rearkit import pipeline
from rearkit.errors import DataError, Interrupted, RearkitError
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import RunFolder

COPIES = ("samples.png", "scores.json")


@pytest.fixture(scope="module")
def finished(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recipe, Path]]:
    place = tmp_path_factory.mktemp("pipeline")
    recipe = small_recipe(tiny, place)
    with pytest.MonkeyPatch.context() as patch:
        # Its charts take most of the time.
        patch.setattr("rearkit.reports.run_page.write_report", lambda *_: None)
        pipeline.run(recipe, place / "run")
        yield recipe, place / "run"


@pytest.fixture
def run(finished: tuple[Recipe, Path], tmp_path: Path) -> RunFolder:
    """A copy of the finished run."""
    return RunFolder(Path(shutil.copytree(finished[1], tmp_path / "run")))


@pytest.fixture
def recipe(finished: tuple[Recipe, Path]) -> Recipe:
    return finished[0]


def trained_by(recipe: Recipe, lr: float) -> Recipe:
    return with_changes(recipe, train=with_changes(recipe.train, lr=lr))


def shown(folder: RunFolder) -> list[str]:
    return [name for name in COPIES if (folder.path / name).is_file()]


def test_scores_of_earlier_weights_go_where_the_new_ones_cannot_be_had(recipe: Recipe, run: RunFolder) -> None:
    assert shown(run) == [*COPIES]
    classifier = with_changes(recipe.evaluate.classifier, min_accuracy=1.0)
    changed = with_changes(trained_by(recipe, 2e-2), evaluate=with_changes(recipe.evaluate, classifier=classifier))
    with pytest.raises(DataError, match="min_accuracy"):
        pipeline.run(changed, run.path)
    assert shown(run) == ["samples.png"]
    assert (run.path / "samples.png").read_bytes() == run.sample_grid.read_bytes()


@pytest.mark.parametrize("error", [Interrupted("stopped"), RearkitError("failed")], ids=["stopped", "failed"])
def test_results_of_earlier_weights_go_when_new_ones_are_trained(
    error: Exception, recipe: Recipe, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("rearkit.stages.train.train_checked", failing)
        with pytest.raises(type(error)):
            pipeline.run(trained_by(recipe, 2e-2), run.path)
    assert shown(run) == []
    pipeline.run(recipe, run.path)
    assert shown(run) == [*COPIES]


def test_a_stage_that_is_refused_leaves_the_recipe_as_it_was(recipe: Recipe, run: RunFolder) -> None:
    before = run.recipe.read_bytes(), run.owner.read_bytes()
    with pytest.raises(RearkitError, match="sample: needs stage 'train', which was last run with another recipe"):
        pipeline.run(trained_by(recipe, 2e-2), run.path, only="sample")
    assert (run.recipe.read_bytes(), run.owner.read_bytes()) == before
