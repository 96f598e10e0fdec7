"""Whose a sweep's folder is, and what it says of its runs and predictions; with folders that only look like runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rearkit.analysis.groups import SWEEP
from rearkit.errors import RearkitError
from rearkit.stages.run_folder import RunFolder
from rearkit.sweeps.claim import claim
from rearkit.sweeps.report import sweep_and_report
from rearkit.sweeps.sweep import load_sweep
from rearkit.system.files import read_json, write_json

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
FILE = f"""
name = "tiny"
recipe = "{SMOKE}"
prediction = "The one wins."
expected = ["one", "two"]
[variants.one]
[variants.two]
noise.name = "none"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def begin(root: Path, name: str, place: str = "train/log.jsonl") -> None:
    """Leave of a run what is there when its training has begun."""
    RunFolder(root / name).claim(f"tiny-{name}")
    (root / name / place).parent.mkdir(parents=True)
    (root / name / place).touch()


def predictions(root: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = read_json(root / SWEEP)["predictions"]
    return found


@pytest.mark.parametrize("other", [True, False], ids=["another sweep", "no sweep"])
def test_the_tables_in_a_refused_folder_are_left_as_they_are(
    file: Path, root: Path, monkeypatch: pytest.MonkeyPatch, other: bool
) -> None:
    # As with runs of the same names and settings.
    monkeypatch.setattr("rearkit.sweeps.runner.up_to_date", lambda *_: True)
    root.mkdir()
    if other:
        write_json(root / SWEEP, {"sweep": "other", "runs": {}, "published": {}, "published_as": ""})
    (root / "table.md").write_text("theirs", encoding="utf-8")
    before = {path: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(RearkitError, match="holds another sweep, 'other'" if other else "not empty and not a sweep"):
        sweep_and_report(file, out=root)
    assert {path: path.read_bytes() for path in root.iterdir()} == before


@pytest.mark.parametrize("place", ["train/log.jsonl", "train/checkpoints/a", "train/stage.json", "previous/train/a"])
def test_runs_that_have_begun_were_known_whatever_their_names_are_now(file: Path, root: Path, place: str) -> None:
    claim(load_sweep(file), root)
    begin(root, "one-s0", place)
    begin(root, "two-s0", "data/key")
    renamed = FILE.replace("variants.one", "variants.first").replace('"one"', '"first"')
    file.write_text(renamed.replace("The one wins", "It loses"), encoding="utf-8")
    claim(load_sweep(file), root)
    assert [one["trained"] for one in predictions(root)] == [0, 1]
