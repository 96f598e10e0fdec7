"""``run --num-gpus 2`` whose launcher or ranks are killed by SIGKILL: none stays, and the run goes on to the same bits.

The number of kills of each process in each stage is that of REARKIT_KILLS.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from interrupted import ENVIRONMENT, alive, results
from ledger import Ledger
from rank_runs import SMOKE, TINY, children, descendants, finish, rearkit

from rearkit.stages.flow import NAMES
from rearkit.system import rendezvous

KILLS = int(os.environ.get("REARKIT_KILLS", "20"))
# Seconds in which all processes are gone after the launcher or a rank was killed.
GONE_S, STOPPED_S = 10.0, 60.0

# Starts ranks that have a child and do nothing; each writes its number and its child's.
LAUNCHER = """
import pathlib, sys
from rearkit.system import launch
shim = pathlib.Path(sys.argv[1], "shim")
shim.write_text(f'#!/bin/sh\\nexec {sys.executable} {sys.argv[1]}/rank.py\\n')
shim.chmod(0o755)
sys.executable = str(shim)
sys.exit(launch.launch(2, []))
"""
RANK = """
import multiprocessing, os, pathlib, time
from rearkit.system.launch import end_with_launcher
from rearkit.system.processes import end_with_parent

def read():
    end_with_parent()
    time.sleep(600)

end_with_launcher()
child = multiprocessing.get_context("fork").Process(target=read)
child.start()
pathlib.Path(__file__).with_name(f"{os.getpid()}.pids").write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def until(condition: object, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ranks_and_their_readers_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)], env=ENVIRONMENT)
    until(lambda: len([1 for path in tmp_path.glob("*.pids") if path.read_text()]) == 2, 60)
    time.sleep(0.2)
    processes = [int(pid) for path in tmp_path.glob("*.pids") for pid in path.read_text().split()]
    assert len(processes) == 4 and all(map(alive, processes))
    launcher.kill()
    launcher.wait()
    until(lambda: not any(map(alive, processes)), GONE_S)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_others_says_so_and_can_be_stopped(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rendezvous, "SAY_AFTER_S", 0.2)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0" if rank == 0 else "1"}.items():
        monkeypatch.setenv(name, value)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with pytest.raises(KeyboardInterrupt):
            rendezvous.meet(rank, 2, timedelta(hours=1))
    finally:
        signal.signal(signal.SIGALRM, before)
    said = capsys.readouterr().err
    assert said.count("waiting for 1 of 2 ranks") == 1 and f"(rank {1 - rank})" in said
    assert "to run as one process, put RANK=0 WORLD_SIZE=1 before the command" in said


# The first rank works for longer than the group's time-out.
WORK = """
import datetime, time, torch
from rearkit.system import distributed
distributed.PATIENCE = datetime.timedelta(seconds=2)
distributed.start(torch.device("cpu"))
print(distributed.from_main(lambda: (time.sleep(4), "worked")[1]))
distributed.leave()
"""


def test_ranks_wait_for_the_first_for_longer_than_their_time_out() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORK], env=ENVIRONMENT | where | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [finish(process) for process in ranks] == ["worked\n", "worked\n"]


def run(out: Path) -> subprocess.Popen[str]:
    return rearkit("run", str(SMOKE), *TINY, f"--out={out}", "--num-gpus=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(run(out), timeout=600)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "rank 0", "rank 1"])
def test_a_run_killed_in_each_stage_goes_on_to_the_same_bits(victim: str, whole: Path, tmp_path: Path) -> None:
    out, moments, kills = tmp_path / "run", random.Random(victim), 0
    for stage in NAMES:
        lasts = json.loads((whole / stage / "stage.json").read_text())["seconds"]
        for _ in range(KILLS):
            # A stage that was finished meanwhile is to do again.
            for later in NAMES[NAMES.index(stage) :]:
                if (out / later / "stage.json").is_file():
                    shutil.rmtree(out / later)
            kills += killed(out, stage, victim, moments.uniform(0, lasts))
    finish(run(out), timeout=600)
    same = results(out) == results(whole) and len(results(out)) > 5
    ledger = Ledger()
    # All kills were of one run: if it ends otherwise than undisturbed, none of them counts as held.
    for number in range(kills):
        ledger.add(f"kill of {victim}", "held" if same else "silent", f"number {number}")
    ledger.check()


def killed(out: Path, stage: str, victim: str, after: float) -> bool:
    """Kill a process in a stage, so many seconds after its run has begun; return whether the stage was not over."""
    process = run(out)
    before = NAMES[: NAMES.index(stage)]

    def begun() -> bool:
        assert process.poll() is None, process.communicate()[0]
        # Of this run: one that was killed leaves its file behind.
        lock = out / ".lock"
        holder = lock.read_text().split()[1:2] if lock.is_file() else []
        claimed = holder in [[str(pid)] for pid in children(process.pid)]
        return claimed and all((out / name / "stage.json").is_file() for name in before)

    until(begun, 300)
    time.sleep(after)
    everybody, ranks = [process.pid, *descendants(process.pid)], sorted(children(process.pid))
    if process.poll() is not None or len(ranks) < 2:
        process.communicate(timeout=STOPPED_S)
        return False
    doomed = {"launcher": process.pid, "rank 0": ranks[0], "rank 1": ranks[-1]}[victim]
    os.kill(doomed, signal.SIGKILL)
    until(
        lambda: not any(alive(pid) for pid in everybody if pid != process.pid),
        GONE_S if victim == "launcher" else STOPPED_S,
    )
    output, _ = process.communicate(timeout=STOPPED_S)
    assert "Traceback" not in output and "at work there" not in output, output
    return True
