from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path

import pytest
import torch

from rearkit.heap import freed_memory_kept

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(
    not (STATM.exists() and hasattr(ctypes.CDLL(None), "mallopt")), reason="needs glibc and Linux's /proc"
)
BYTES = 256 * 2**20


def resident() -> int:
    return int(STATM.read_text().split()[1]) * resource.getpagesize()


def allocate_and_free() -> None:
    torch.zeros(BYTES, dtype=torch.uint8).fill_(1)


@pytest.mark.parametrize("fails", [False, True])
def test_freed_memory_stays_within_the_context_and_is_used_again_and_is_given_back_after_it(fails: bool) -> None:
    before = resident()
    with pytest.raises(ValueError) if fails else contextlib.nullcontext(), freed_memory_kept():
        for _ in range(8):
            allocate_and_free()
        kept = resident()
        if fails:
            raise ValueError
    after = resident()
    assert 0.9 * BYTES < kept - before < 2.2 * BYTES  # a block may just not fit where the one before it was
    assert after - before < 0.1 * BYTES
