"""The memory of this machine: what cannot fit is refused, and what is freed is kept for the same work again.

The C library returns large freed blocks to the operating system at once, and the system hands out new ones page by
page, each of them zeroed. A training step on a CPU spends up to a tenth of its time on that: an elementwise operation
on (4, 258, 3072) took 6 to 17 ms, and takes 1 to 2 where freed memory is kept (docs/performance/training.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from rearkit.errors import RecipeError

# As in glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Bytes: the largest value that glibc itself reaches when it adapts the threshold to a program.
MMAP_THRESHOLD = 32 * 2**20


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this context, freed memory stays with the process; at the end, free memory is returned to the system.

    Blocks of 32 MiB and more are still returned at once. Without glibc, this does nothing.
    """
    libc = ctypes.CDLL(None)
    # musl and macOS have no mallopt.
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    # Larger blocks are not kept: those whose sizes differ cannot replace one another, and would add up.
    libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
    # The largest value that mallopt's C int can take: never trim.
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        # Twice the mmap threshold is what glibc sets when it adjusts both by itself.
        libc.mallopt(M_TRIM_THRESHOLD, 2 * MMAP_THRESHOLD)
        libc.malloc_trim(0)


def check_memory(name: str, weights: int) -> None:
    """Check that weights fit into the memory of this machine at all; a training needs some times as much.

    Args:
        name: of the recipe.
        weights: bytes.

    Raises:
        RecipeError: they do not.
    """
    # macOS has both names too; where a system has neither, nothing is known.
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 0 < memory < weights:
            raise RecipeError(
                [
                    f"{name}: the weights alone take {weights / 2**30:,.0f} GiB, and this machine has "
                    f"{memory / 2**30:,.0f} GiB of memory; correct the model's sizes, or see `plan` for what it needs"
                ]
            )
