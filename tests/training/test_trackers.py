from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rearkit.errors import RearkitError
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.stages import train as stage
from rearkit.stages.inputs import check_inputs
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import stage_key
from rearkit.training.logs import TrainLog, read_log
from rearkit.training.trackers import TENSORBOARD, WANDB_RUN, check_trackers, open_trackers

FAKE = '''
"""Stands in for wandb: it notes what it is called with."""
import json, os

def note(**what):
    with open(os.environ["FAKE_WANDB"], "a") as file:
        file.write(json.dumps(what) + "\\n")

class Run:
    def log(self, values, step):
        note(step=step, values=values)

    def finish(self):
        note(finished=True)

def init(**options):
    if options["project"] == "forbidden":
        raise PermissionError("api_key not configured")
    note(init=options)
    return Run()
'''


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """A fake ``wandb`` package, and what it was called with."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    path = tmp_path / "calls.jsonl"
    monkeypatch.setenv("FAKE_WANDB", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def with_trackers(tiny: Callable[..., Recipe], **trackers: Any) -> Recipe:
    return tiny(train={"steps": 4, "global_batch": 8, "trackers": trackers})


def test_tensorboard_alone_is_the_default(tiny: Callable[..., Recipe], tmp_path: Path, calls: Any) -> None:
    (tracker,) = open_trackers(tiny(), tmp_path, 0)
    tracker.close()
    assert (tmp_path / TENSORBOARD).is_dir() and calls() == []
    assert open_trackers(with_trackers(tiny, tensorboard=False), tmp_path, 0) == []


def test_wandb_gets_the_recipe_and_every_value(tiny: Callable[..., Recipe], tmp_path: Path, calls: Any) -> None:
    recipe = with_trackers(tiny, wandb=True, tensorboard=False, wandb_project="mine", wandb_entity="us")
    log = TrainLog(tmp_path, 0, open_trackers(recipe, tmp_path, 0))
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": 0.25, "lr": 1e-3})
    log.close()
    first, *values, last = calls()
    assert first["init"]["project"] == "mine" and first["init"]["entity"] == "us"
    assert first["init"]["name"] == "tiny" and first["init"]["config"] == json.loads(json.dumps(recipe_to_dict(recipe)))
    assert "mode" not in first["init"]  # so that WANDB_MODE counts
    assert [(one["step"], one["values"]) for one in values] == [(1, {"loss": 0.5}), (2, {"loss": 0.25, "lr": 1e-3})]
    assert last == {"finished": True}
    assert len(read_log(tmp_path)) == 2


def test_a_resumed_training_goes_on_with_its_run_and_a_fresh_one_begins_another(
    tiny: Callable[..., Recipe], tmp_path: Path, calls: Any
) -> None:
    recipe = with_trackers(tiny, wandb=True, tensorboard=False, wandb_offline=True)
    for step in (0, 10, 0):
        for tracker in open_trackers(recipe, tmp_path, step):
            tracker.close()
    inits = [one["init"] for one in calls() if "init" in one]
    assert inits[0]["id"] == inits[1]["id"] != inits[2]["id"] == (tmp_path / WANDB_RUN).read_text().strip()
    assert {one["mode"] for one in inits} == {"offline"} and {one["resume"] for one in inits} == {"allow"}


def test_what_keeps_wandb_from_starting_is_told_in_a_line(
    tiny: Callable[..., Recipe], tmp_path: Path, calls: Any
) -> None:
    recipe = with_trackers(tiny, wandb=True, tensorboard=False, wandb_project="forbidden")
    with pytest.raises(RearkitError, match=r"\[train\.trackers\] wandb: .*api_key not configured.*wandb login"):
        open_trackers(recipe, tmp_path, 0)


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    recipe = with_trackers(tiny, wandb=True)
    for check in (lambda: check_inputs(recipe), lambda: check_trackers(recipe.train.trackers)):
        with pytest.raises(RearkitError, match=r"pip install 'rearkit\[wandb\]'"):
            check()
    check_trackers(tiny().train.trackers)


def test_trackers_do_not_make_a_training_run_again(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert stage_key(stage.STAGE, tiny(), folder) != stage_key(stage.STAGE, tiny(train={"lr": 0.5}), folder)
    assert stage_key(stage.STAGE, with_trackers(tiny, wandb=True), folder) == stage_key(
        stage.STAGE, with_trackers(tiny), folder
    )
