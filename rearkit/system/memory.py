"""Keep memory that is freed, for work that allocates the same again and again.

The C library gives large blocks back to the system as soon as they are freed, and the system hands out new ones page by
page, each of them zeroed. A training step on a CPU spends up to a tenth of its time on that.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MMAP_THRESHOLD = 32 * 2**20  # bytes: the largest that glibc's own adjustment to a program reaches


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this context, memory that is freed stays with the process; at its end, what is free is given back.

    Blocks of 32 MiB and more are given back at once even so, since those that do not fit one another would add up. Does
    nothing where the C library is not glibc.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * MMAP_THRESHOLD)
        libc.malloc_trim(0)
