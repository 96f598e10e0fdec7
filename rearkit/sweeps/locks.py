"""Locks between processes, so that two sweeps at once, or one after a kill, never work in one folder.

A lock is the kernel's, on an open file: it ends with the last process that has the file open, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from rearkit.console import say


def try_lock(path: Path) -> int | None:
    """Lock a file, and return its descriptor, to be closed; None where another process holds it.

    A child process that is given the descriptor holds the lock, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock; wait for it where another process has it."""
    descriptor = try_lock(path)
    if descriptor is None:
        say(f"waiting for another process, which holds {path}")
        descriptor = os.open(path, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)
