"""Locks between processes, so that two runs or two sweeps never work in the same folder.

These are kernel locks: the kernel releases them when the process ends, even if it is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from rearkit.errors import RearkitError
from rearkit.system.console import say


@contextlib.contextmanager
def claimed(path: Path, what: str) -> Iterator[None]:
    """Hold a lock that child processes do not inherit. On a file system without locks, continue without one.

    Args:
        path: the file to lock; removed at the end.
        what: what is being claimed, for the error message.

    Raises:
        RearkitError: another process holds the lock.
    """
    descriptor = _open_claimed(path, what)
    # The content only serves the error message of another process, so a full disk must not stop this one.
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        # Removed before it is unlocked: afterwards it may already be another process's lock.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open_claimed(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # lockf's locks belong to the process: children do not inherit them, as they do flock's, so that a worker
            # process that outlives the run does not keep the folder locked.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # The two errors that POSIX allows for a lock held elsewhere. Any other is taken to mean that the file
            # system has no locks.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise RearkitError(f"{what}: {holder} is at work there; wait until it has ended, or end it") from None
        # The last holder may have removed the file between `open` and `lockf`. A lock on a removed file keeps nobody
        # out, so it only counts if the path still leads to the file that was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Lock a file without waiting.

    A child process that inherits the descriptor holds the lock too.

    Returns:
        the file's descriptor, which the caller closes to unlock it; None if another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # flock's locks belong to the open file, so that children to whom the descriptor is passed share them.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock; if another process has it, wait."""
    descriptor = try_lock(path)
    if descriptor is None:
        # Said before waiting, which may take hours without a sign of life.
        say(f"waiting for another process, which holds {path}")
        descriptor = os.open(path, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)
