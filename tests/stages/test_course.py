"""What a training was begun with is known, whatever was run in its folder since."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rearkit.contracts import Classes
from rearkit.errors import RearkitError
from rearkit.model import build
from rearkit.recipe.tables import Recipe
from rearkit.stages import course
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import keep_training_recipe, save_resolved_recipe, training_recipes
from rearkit.stages.stage import stage_key
from rearkit.stages.train import STAGE, export


def test_the_recipe_last_run_is_not_taken_for_the_one_that_a_training_was_begun_with(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "up_to_date", lambda stages, recipe, folder: True)
    folder, begun, longer = RunFolder(tmp_path), tiny(), tiny(train={"steps": 9})
    keys = [stage_key(STAGE, begun, folder)]
    save_resolved_recipe(begun, folder)
    assert course._before(longer, folder, keys) == begun.train  # as earlier versions left it
    save_resolved_recipe(longer, folder)
    with pytest.raises(RearkitError, match=r"only \[train\] may change"):
        course._before(longer, folder, keys)
    keep_training_recipe(begun, folder)
    assert course._before(longer, folder, keys) == begun.train
    save_resolved_recipe(tiny(noise={"name": "none"}), folder)
    with pytest.raises(RearkitError, match=r"and \[backbone\] did"):
        course._before(tiny(backbone={"num_layers": 3}), folder, keys)


def test_the_runs_own_model_is_read_without_a_warning_of_others(
    tiny: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    for split in ("train", "held"):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "image.png").write_bytes(b"")
    source = {"name": "folder", "train": str(tmp_path / "train"), "held_out": str(tmp_path / "held")}
    recipe = tiny(data={"source": source})
    export(build(recipe, None, Classes(2)), 4, folder)
    assert list(training_recipes(folder)) == [recipe]
    assert "left out" not in capsys.readouterr().out
