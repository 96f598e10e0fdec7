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


@pytest.mark.parametrize("stage", ["sample", "evaluate"])
def test_a_stage_that_is_refused_leaves_the_recipe_as_it_was(stage: str, recipe: Recipe, run: RunFolder) -> None:
    before = run.recipe.read_bytes(), run.owner.read_bytes()
    # The second reads nothing of the training itself, but samples that are of it.
    with pytest.raises(RearkitError, match=f"{stage}: needs stage 'train', which was last run with another recipe"):
        pipeline.run(trained_by(recipe, 2e-2), run.path, only=stage)
    assert (run.recipe.read_bytes(), run.owner.read_bytes()) == before


def test_other_floors_judge_what_is_finished(
    recipe: Recipe, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    def under(fitted: float, written: float, least: float) -> Recipe:
        fit, classifier = recipe.tokenizer.fit, recipe.evaluate.classifier
        return with_changes(
            recipe,
            tokenizer=with_changes(recipe.tokenizer, fit=with_changes(fit, min_psnr=fitted)),
            tokens=with_changes(recipe.tokens, min_psnr=written),
            evaluate=with_changes(recipe.evaluate, classifier=with_changes(classifier, min_accuracy=least)),
        )

    before = {path: path.stat().st_mtime_ns for path in run.path.glob("*/*.*") if path.name != "stage.json"}
    pipeline.run(under(1.0, 2.0, 0.01), run.path)
    assert capsys.readouterr().out.count("up to date, since its result reaches the recipe's floors") == 3
    for floors, message in (
        ((99.0, 0.0, 0.0), r"\[tokenizer\.fit\] min_psnr = 99\.0, but held-out images come back at"),
        ((1.0, 99.0, 0.0), r"\[tokens\] min_psnr = 99\.0, but the written tokens reach"),
        ((1.0, 0.0, 1.0), r"\[evaluate\.classifier\] min_accuracy = 1\.0, but the classifier reaches"),
    ):
        with pytest.raises(DataError, match=message):
            pipeline.run(under(*floors), run.path)
    pipeline.run(recipe, run.path)
    assert shown(run) == [*COPIES] and not run.previous("train").parent.exists()
    assert before == {path: path.stat().st_mtime_ns for path in before}
