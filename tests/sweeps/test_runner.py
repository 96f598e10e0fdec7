"""A sweep at the smallest size that works, with real processes; what is shared, what is kept, what a failure leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from rearkit.analysis.groups import find_groups, run_folders
from rearkit.errors import RearkitError
from rearkit.stages.flow import NAMES
from rearkit.stages.run_folder import RunFolder
from rearkit.sweeps.report import sweep_and_report
from rearkit.sweeps.runner import Job, _last_words, _work, run_sweep
from rearkit.sweeps.sharing import COMMON, UNSCORED, link, prepare_common, same_stages, stages_to_take, take_over
from rearkit.sweeps.sweep import load_sweep
from rearkit.system.locks import try_lock
from rearkit.system.signals import GUARD

DONE = "stage.json"

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
# Two models; the third variant samples from the first one's again.
SWEEP = f"""
name = "tiny"
recipe = "{SMOKE}"
[variants.both]
[variants.plain]
noise.name = "none"
regularizers = []
[variants.guided]
sample.guidance_scale = 3.0
[published]
both = 2.0
"""
SMALLER = ["train.steps=6", "tokenizer.fit.steps=8", "sample.num_images=20", "evaluate.classifier.steps=20"]


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "tiny.toml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def root(sweep_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    sweep_and_report(sweep_file, SMALLER, root, 2)
    return root


def test_a_sweep_leaves_whole_runs_and_a_table(root: Path) -> None:
    rows = (root / "table.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["both", "1"], ["plain", "1"], ["guided", "1"]]
    assert rows[1].endswith(",2.0")
    assert "| both | 1 |" in (root / "table.md").read_text()
    for name in ("both-s0", "plain-s0", "guided-s0"):
        assert (root / name / "report.html").is_file()


def test_what_runs_have_in_common_is_computed_once(root: Path) -> None:
    both, plain, guided = (root / name for name in ("both-s0", "plain-s0", "guided-s0"))
    for file in ("data/train-000000.tar", "tokenizer/tokenizer.safetensors", "classifier/classifier.safetensors"):
        assert (both / file).samefile(plain / file), file
    assert (guided / "train/model.safetensors").samefile(both / "train/model.safetensors")
    assert not (plain / "train/model.safetensors").samefile(both / "train/model.safetensors")
    spaces = {json.loads((run / "scores.json").read_text())["fid_floor"] for run in (both, plain, guided)}
    assert len(spaces) == 1


def test_stages_that_an_earlier_sweep_has_finished_are_taken_over(
    root: Path, sweep_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe,) = (run.recipe for run in load_sweep(sweep_file, SMALLER).runs if run.variant == "guided")
    recipe = attrs.evolve(recipe, name="again")
    donors = run_folders(root)
    (common,) = prepare_common([recipe], tmp_path, donors)
    assert "taken over from" in capsys.readouterr().out
    assert (common.path / "tokens/shards.json").samefile(root / "plain-s0/tokens/shards.json")
    assert (common.path / "classifier/classifier.safetensors").samefile(
        root / "plain-s0/classifier/classifier.safetensors"
    )
    target = RunFolder(tmp_path / "again")
    target.claim("again")
    take_over(recipe, target, donors, UNSCORED)
    # Not the samples of the same model without guidance.
    assert target.samples.samefile(root / "guided-s0/sample/samples.npz")
    assert same_stages(recipe, target, NAMES) == list(UNSCORED)
    # What is there already stays, and another model's stages are not taken for it.
    capsys.readouterr()
    take_over(recipe, target, donors, UNSCORED)
    assert not capsys.readouterr().out
    # Nor weights that had another schedule at first, whose key is that of the last one.
    target.courses.write_text('[{"step": 2, "changed": {}}]')
    assert stages_to_take(recipe, target, UNSCORED) == list(COMMON)
    longer = attrs.evolve(recipe, train=attrs.evolve(recipe.train, steps=7))
    assert same_stages(longer, target, NAMES) == list(COMMON)


def test_a_folder_without_runs_has_nothing_to_take_over(sweep_file: Path, tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match=r"--reuse: .*: no folder of a run or sweep"):
        sweep_and_report(sweep_file, SMALLER, tmp_path / "new", reuse=[tmp_path])
    assert not (tmp_path / "new").exists()


def test_a_finished_sweep_starts_no_process(root: Path, sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    found = run_sweep(load_sweep(sweep_file, SMALLER), root)
    assert {name: len(folders) for name, folders in found.items()} == {"both": 1, "plain": 1, "guided": 1}
    groups = find_groups([root])
    assert [(group.name, len(group.folders)) for group in groups] == [("both", 1), ("plain", 1), ("guided", 1)]
    assert [group.published for group in groups] == [2.0, None, None]
    page = (root / "comparison.html").read_text().replace("<wbr>", "")  # where a long key may be broken
    assert "sample.guidance_scale" in page
    assert "noise.name" in page


@pytest.fixture
def jobs(sweep_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The sweep's runs with nothing shared; a run writes 'PID' to a file, sleeps, and fails where it is `plain`."""
    monkeypatch.setattr("rearkit.sweeps.runner.link", lambda *arguments: None)
    monkeypatch.setattr(RunFolder, "result", lambda folder, name: {"fid": 1.0})
    command = (
        "import pathlib, sys, time; out = pathlib.Path(sys.argv[-1]); (out / 'ran').write_text('x'); time.sleep(1.5);"
        "sys.exit('error: the disk is full' if 'plain' in out.name else 0)"
    )
    real = subprocess.Popen

    def start(arguments: list[str], **options: Any) -> Any:
        own = [sys.executable, "-c", command, arguments[-1]]
        return real(own if "rearkit" in arguments else arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    nowhere = RunFolder(tmp_path / "shared")
    return [Job(run, RunFolder(tmp_path / run.name), nowhere, None, ()) for run in load_sweep(sweep_file).runs]


def test_runs_go_side_by_side_and_a_failure_stops_no_other(jobs: list[Job], tmp_path: Path) -> None:
    started = time.monotonic()
    _work(jobs, tmp_path, 3, [])
    assert time.monotonic() - started < 2.9  # one after the other, they sleep 4.5 s
    assert [job.trouble for job in jobs] == [None, "the disk is full", None]


def test_a_signal_while_a_run_is_started_stops_that_run_too(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = subprocess.Popen, []

    def stopped(arguments: list[str], **options: Any) -> Any:
        started.append(start(arguments, **options))
        signal.raise_signal(signal.SIGINT)  # before anybody else knows the process
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", stopped)
    with GUARD, pytest.raises(KeyboardInterrupt):
        _work(jobs, tmp_path, 1, [])
    assert [process.poll() for process in started] == [-signal.SIGTERM]


def test_a_run_that_another_process_is_at_is_waited_for(jobs: list[Job], tmp_path: Path) -> None:
    held = try_lock(tmp_path / "locks" / f"{jobs[0].run.name}.lock")
    assert held is not None
    holder = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"], pass_fds=(held,))
    os.close(held)  # as after a kill -9 of the sweep: only its child holds the lock
    _work([jobs[0]], tmp_path, 1, [])
    assert holder.poll() == 0
    assert (jobs[0].folder.path / "ran").is_file()


def test_a_linked_stage_is_replaced_without_changing_the_other(tmp_path: Path) -> None:
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    for folder, key in ((one, "new"), (two, "old")):
        folder.stage("data").mkdir(parents=True)
        (folder.stage("data") / "key").write_text(key)
        (folder.stage("data") / DONE).write_text(key)
    link(one, two, ["data", "absent"])
    assert (two.stage("data") / DONE).samefile(one.stage("data") / DONE)
    from rearkit.system.files import write_text

    write_text(two.stage("data") / DONE, "mine")
    assert (one.stage("data") / DONE).read_text() == "new"
    link(one, two, ["data"])  # the same key: left as it is
    assert (two.stage("data") / DONE).read_text() == "mine"


@pytest.mark.parametrize(
    ("log", "expected"),
    [("fine\nerror: no\n  more\n", "no"), ("Traceback\nKeyError: 'x'\n\n", "KeyError: 'x'"), ("", "exit code 9")],
)
def test_an_error_is_told_in_a_line(tmp_path: Path, log: str, expected: str) -> None:
    (tmp_path / "log").write_text(log)
    assert _last_words(tmp_path / "log", 9) == expected
