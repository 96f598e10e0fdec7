"""Whose a sweep's folder is, and what it says of its runs and predictions; with folders that only look like runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rearkit.analysis.groups import SWEEP, find_groups, read_sweep
from rearkit.analysis.verify import verify
from rearkit.errors import RearkitError
from rearkit.stages.run_folder import RunFolder
from rearkit.sweeps.claim import claim
from rearkit.sweeps.report import sweep_and_report
from rearkit.sweeps.sweep import Sweep, load_sweep
from rearkit.system.checksums import write_sealed
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
def sweep(file: Path) -> Sweep:
    return load_sweep(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def begin(root: Path, name: str, place: str = "train/log.jsonl") -> None:
    """Leave of a run what is there when its training has begun."""
    RunFolder(root / name).claim(f"tiny-{name}")
    (root / name / place).parent.mkdir(parents=True)
    (root / name / place).touch()


def predictions(root: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = (read_sweep(root) or {})["predictions"]
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"wins")] ^= 1
    path.write_bytes(content)


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


@pytest.mark.parametrize("damage", [flip, Path.unlink, Path.write_bytes], ids=["flipped", "lost", "emptied"])
def test_a_damaged_or_lost_record_is_written_anew_of_the_runs_that_are_there(
    sweep: Sweep, root: Path, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    claim(sweep, root)
    begin(root, "one-s0")
    damage(root / SWEEP, *([b""] if damage is Path.write_bytes else []))
    claim(sweep, root)
    assert f"{root / SWEEP} is missing or damaged; it is written anew" in capsys.readouterr().out.replace("\n", "")
    assert [(one["prediction"], one["trained"]) for one in predictions(root)] == [("The one wins.", 1)]
    # Sound again, and so without another word.
    claim(sweep, root)
    assert not capsys.readouterr().out


def test_a_damaged_record_without_a_run_of_the_sweep_is_refused(sweep: Sweep, root: Path) -> None:
    claim(sweep, root)
    flip(root / SWEEP)
    RunFolder(root / "one-s0").claim("theirs-one-s0")
    with pytest.raises(RearkitError, match=r"sweep\.json is damaged, and no run of 'tiny' is there"):
        claim(sweep, root)


def test_a_claim_that_was_cut_off_is_made_again(sweep: Sweep, root: Path) -> None:
    root.mkdir()
    (root / f".{SWEEP}.1.tmp").touch()
    claim(sweep, root)
    assert read_sweep(root) is not None


def test_a_record_without_a_checksum_is_read_and_gets_one(sweep: Sweep, root: Path) -> None:
    about = {"sweep": "tiny", "runs": {"one": ["one-s0"]}, "published": {}, "published_as": "published"}
    write_json(root / SWEEP, about)
    assert read_sweep(root) == about
    claim(sweep, root)
    assert "sha256" in read_json(root / SWEEP)


def test_a_damaged_record_is_told_where_it_is_read(sweep: Sweep, root: Path) -> None:
    claim(sweep, root)
    assert [(one.file, one.state) for one in verify(root).verdicts] == [(SWEEP, "sound")]
    flip(root / SWEEP)
    assert [(one.file, one.state) for one in verify(root).verdicts] == [(SWEEP, "damaged")]
    with pytest.raises(RearkitError, match=r"sweep\.json: damaged; run the sweep again"):
        find_groups([root])


def test_what_is_given_to_reuse_must_be_a_run(file: Path, root: Path, tmp_path: Path) -> None:
    for name in ("data", "train"):
        (tmp_path / "dataset" / name).mkdir(parents=True)
    with pytest.raises(RearkitError, match=r"--reuse: .*: no folder of a run or sweep"):
        sweep_and_report(file, out=root, reuse=[tmp_path / "dataset"])


def test_a_run_of_which_nothing_fits_is_told_once(
    file: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rearkit.sweeps.report.run_sweep", lambda *_: {})
    earlier = tmp_path / "earlier"
    done = {"key": "another", "digest": "", "outputs": {}, "result": {}}
    write_sealed(RunFolder(earlier).record("data"), done)
    sweep_and_report(file, out=root, reuse=[earlier])
    told = capsys.readouterr().out.replace("\n", "")
    assert told.count(f"--reuse: {earlier}: nothing of it can be taken over") == 1
