from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(
    not (STATM.exists() and hasattr(ctypes.CDLL(None), "mallopt")), reason="needs glibc and Linux's /proc"
)
# In a process of its own, since what tests before this one left free in the heap would be used again.
PROGRAM = f"""
import contextlib, resource, sys
import torch
from rearkit.system.memory import freed_memory_kept

def resident():
    return int(open("{STATM}").read().split()[1]) * resource.getpagesize() / 2**20

def allocate_and_free():
    blocks = [torch.zeros(8 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(32)]

allocate_and_free()
before = resident()
with contextlib.suppress(ValueError), freed_memory_kept():
    allocate_and_free()
    once = resident()
    for _ in range(10):
        allocate_and_free()
    often = resident()
    if sys.argv[1] == "fails":
        raise ValueError
print(once - before, often - once, resident() - before)
"""
MIB = 32 * 8


def growth(how: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


@pytest.mark.parametrize("how", ["fails", "succeeds"])
def test_freed_memory_stays_within_the_context_and_is_used_again_and_is_given_back_after_it(how: str) -> None:
    once, often, after = growth(how)
    assert once > 0.8 * MIB
    assert often < 0.6 * MIB
    assert after < 0.2 * MIB
