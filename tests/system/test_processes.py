"""Work in several processes: in order, with its errors, and with none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rearkit.errors import DataError, RearkitError
from rearkit.system.processes import in_processes


def slow_first(number: int, count: int) -> tuple[int, int]:
    time.sleep(0.05 * (count - number))
    return number, os.getpid()


def refuse(number: int) -> int:
    if number == 1:
        raise DataError("line 41")
    return number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    found = list(in_processes(slow_first, [(number, 4) for number in range(4)], workers))
    assert [number for number, _ in found] == [0, 1, 2, 3]
    assert 1 <= len({process for _, process in found} - {os.getpid()}) <= workers


def test_no_jobs_start_no_process() -> None:
    assert list(in_processes(refuse, [], None)) == []


def test_an_error_is_the_workers() -> None:
    done = in_processes(refuse, [(0,), (1,), (2,)], 2)
    assert next(done) == 0
    with pytest.raises(DataError, match="line 41"):
        next(done)


def test_a_killed_process_is_told() -> None:
    with pytest.raises(RearkitError, match="was killed"):
        list(in_processes(die, [(0,), (1,)], 2))


SCRIPT = """
import os, pathlib, sys, time
from rearkit.system.processes import in_processes

def work(number):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

list(in_processes(work, [(0,), (1,), (2,)], 3))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_started_it(number: int, tmp_path: Path) -> None:
    started = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)])
    until(lambda: len(list(tmp_path.iterdir())) == 3)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert all(alive(worker) for worker in workers)
    started.send_signal(number)
    started.wait(10)
    until(lambda: not any(alive(worker) for worker in workers))


@pytest.mark.parametrize(("ignored", "code"), [(False, -signal.SIGINT), (True, 0)])
def test_ctrl_c_ends_all_alike(ignored: bool, code: int, tmp_path: Path) -> None:
    """It goes to each process of a group; what runs in the background of a shell ignores it, and so do its workers."""
    before = f"import signal; signal.signal(signal.SIGINT, signal.SIG_{'IGN' if ignored else 'DFL'})\n"
    script = before + SCRIPT.replace("600", "1.5")
    started = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], start_new_session=True)
    until(lambda: len(list(tmp_path.iterdir())) == 3)
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(30) == code


def alive(process: int) -> bool:
    # An orphan that has ended may stay a zombie, where nobody collects it.
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def until(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
