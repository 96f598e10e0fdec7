"""A rank that fails alone, while the others wait for it: it says why and is gone, whatever its group waits for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from rank_runs import ENVIRONMENT

# As `__main__` does. NCCL's group waits at its end for the other ranks; gloo's, which can be had here, does not.
PROGRAM = """
import os, sys, time, types
from rearkit.system.signals import GUARD
GUARD.__enter__()
from rearkit.cli import main
assert "torch" not in sys.modules
main.RANK_DELAY_S = 0.5
sys.modules["rearkit.system.distributed"] = types.SimpleNamespace(leave=lambda: time.sleep(600))

def work(*given, **more):
    {work}

main.cli.main = work
main.main([])
"""
PROMISED_S = 300.0
TOGETHER = """del sys.modules["rearkit.system.distributed"]
    import torch
    from rearkit.system import distributed
    distributed.start(torch.device("cpu"))
    if distributed.rank() == 1:
        raise RuntimeError("on its own")
    torch.distributed.all_reduce(torch.zeros(1))"""


def start(work: str, rank: int, port: int = 1) -> subprocess.Popen[str]:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", PROGRAM.replace("{work}", work)]
    return subprocess.Popen(command, env=ENVIRONMENT | where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("work", "code", "told"),
    [
        ('raise RuntimeError("on its own")', 1, "Traceback"),
        ('raise main.errors.DataError("no such shard")', 3, "error: rank 1: no such shard"),
        # As `from_main` does where the first rank has met an error.
        ("raise SystemExit(4)", 4, ""),
    ],
)
def test_a_rank_says_why_it_ends_before_its_process_group_does(work: str, code: int, told: str) -> None:
    process = start(work, rank=1)
    output, errors = process.communicate(timeout=PROMISED_S)
    assert process.returncode == code, errors
    assert output == "" and (told in errors if told else errors == "")
    if told == "Traceback":
        assert errors.endswith("RuntimeError: on its own\n")


def test_ranks_that_wait_for_one_that_failed_end_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    ranks = [start(TOGETHER, rank, port) for rank in range(2)]
    (_, first), (_, second) = (process.communicate(timeout=PROMISED_S) for process in ranks)
    assert [process.returncode for process in ranks] == [1, 1]
    assert first == "error: lost contact with another rank; see that rank's error message\n"
    assert second.startswith("Traceback") and second.endswith("RuntimeError: on its own\n")


def test_ranks_leave_torch_s_warnings_out() -> None:
    """Of the store that the first rank served, above all; a level that somebody has set stays."""
    work = 'print(os.environ["TORCH_CPP_LOG_LEVEL"], flush=True); os._exit(0)'
    output, _ = start(work, rank=1).communicate(timeout=PROMISED_S)
    assert output == os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR") + "\n"
