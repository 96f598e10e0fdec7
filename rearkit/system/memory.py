"""Keep freed memory in the process, for work that allocates the same sizes again and again.

The C library returns large freed blocks to the operating system at once, and the system hands out new ones page by
page, each of them zeroed. A training step on a CPU spends up to a tenth of its time on that: an elementwise operation
on (4, 258, 3072) took 6 to 17 ms, and takes 1 to 2 where freed memory is kept (docs/performance/training.md).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

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
