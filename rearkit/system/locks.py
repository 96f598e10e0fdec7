"""Locks between processes, so that two runs or sweeps at once, or one after a kill, never work in one folder.

A lock is the kernel's, and ends with the process that holds it, however that ends.
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
    """Hold a lock that is this process's alone, not its children's; where the file system has no locks, do without.

    Args:
        path: the file to lock.
        what: is claimed, for the message.

    Raises:
        RearkitError: another process holds it.
    """
    descriptor = _open_claimed(path, what)
    with contextlib.suppress(OSError):  # only for the message
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _open_claimed(path: Path, what: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise RearkitError(f"{what}: {holder} is at work there; wait until it has ended, or end it") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # its last holder has removed it meanwhile


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
