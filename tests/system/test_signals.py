"""Where a signal may come: it always ends the process, with one line and its code, and never by an odd exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from interrupted import CODES, ENVIRONMENT

# As `__main__` does; the moments are those in which an exception would be lost, or cannot be raised.
PROGRAM = """
import ctypes, os, sys, threading, time
from rearkit.system import signals
signals.UNWIND_S = 1.0
signals.GUARD.__enter__()
from rearkit.cli import main
main.cli.callback = None

def send(after=0.2):
    threading.Timer(after, lambda: os.kill(os.getpid(), int(sys.argv[1]))).start()

class Held:
    def __del__(self):
        send()
        time.sleep(0.6)

def work():
    {work}
    time.sleep(30)
    print("went on")

main.cli.main = lambda *given, **more: work()
main.main([])
"""
MOMENTS = {
    "anywhere": "send()",
    "in an import that makes something else of it": "send(); import slow_module",
    "in __del__": "Held()",
    "where it is swallowed": "send()\n    try: time.sleep(9)\n    except BaseException: pass",
    "in code that never returns": "send(); ctypes.CDLL(None).sleep(30)",
    "while samples do not come": "send()\n    with signals.StopRequest() as stop: stop.waiting = True; time.sleep(30)",
    "after the last step": "send(0)\n    with signals.StopRequest() as stop: time.sleep(0.5)",
    "where another exception comes of it": "send()\n    try: time.sleep(9)\n    finally: {}['gone']",
}
SLOW_MODULE = """
import time
try:
    time.sleep(1)
except BaseException:
    raise ImportError("unknown dataset")
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_process_in_one_line(moment: str, tmp_path: Path) -> None:
    number = list(CODES)[len(moment) % 2]
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    (tmp_path / "program.py").write_text(PROGRAM.replace("{work}", MOMENTS[moment]))
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(int(number))],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == CODES[number], done.stderr
    assert done.stderr == "error: stopped; what is finished is kept, run the same command to go on\n"
    assert done.stdout == ""


# Without WORLD_SIZE there is one process, whatever RANK a shell has kept from another job.
@pytest.mark.parametrize(
    ("variables", "speaks"),
    [({}, True), ({"RANK": "3"}, True), ({"RANK": "3", "WORLD_SIZE": "4"}, False), ({"WORLD_SIZE": "4"}, True)],
)
def test_the_first_rank_alone_says_that_it_leaves(variables: dict[str, str], speaks: bool) -> None:
    program = "from rearkit.system import signals; signals.GUARD.leave()"
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | variables, capture_output=True, text=True, timeout=20
    )
    assert done.stderr == (
        "error: stopped; what is finished is kept, run the same command to go on\n" if speaks else ""
    )
