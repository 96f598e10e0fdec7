"""Whose a sweep's folder is, and what it says of its runs and predictions; with folders that only look like runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rearkit.analysis.groups import SWEEP
from rearkit.errors import RearkitError
from rearkit.sweeps.report import sweep_and_report
from rearkit.system.files import write_json

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
