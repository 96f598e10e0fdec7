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
MIB = 24
# In a process of its own, since what tests before this one left free in the heap would be used again.
PROGRAM = f"""
import contextlib, resource, sys
import torch
from rearkit.heap import freed_memory_kept

def resident():
    return int(open("{STATM}").read().split()[1]) * resource.getpagesize() / 2**20

def allocate_and_free():
    torch.zeros({MIB} * 2**20, dtype=torch.uint8).fill_(1)

torch.ones(10).add_(1)
before = resident()
with contextlib.suppress(ValueError), freed_memory_kept():
    for _ in range(30):
        allocate_and_free()
    kept = resident()
    if sys.argv[1] == "fails":
        raise ValueError
print(kept - before, resident() - before)
"""


@pytest.mark.parametrize("how", ["fails", "succeeds"])
def test_freed_memory_stays_within_the_context_and_is_used_again_and_is_given_back_after_it(how: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    within, after = map(float, done.stdout.split())
    assert 0.9 * MIB < within < 2.5 * MIB  # a block may just not fit where the one before it was
    assert after < 0.3 * MIB
