"""Locks between processes, so that two runs or two sweeps never work in the same folder.

These are kernel locks: the kernel releases them when the process ends, even if it is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from rearkit.errors import RearkitError
from rearkit.system.console import say, say_once


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
        descriptor = opened_lock(path)
        try:
            # lockf's locks belong to the process: children do not inherit them, as they do flock's, so that a worker
            # process that outlives the run does not keep the folder locked.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # The two errors that POSIX allows for a lock held elsewhere.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise RearkitError(f"{what}: {holder} is at work there; wait until it has ended, or end it") from None
            _warn(path, error)
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
    descriptor = opened_lock(path)
    if not _flock(descriptor, path, fcntl.LOCK_NB):
        os.close(descriptor)
        return None
    return descriptor


def opened_lock(path: Path) -> int:
    """Open a file to lock, or make it.

    Raises:
        RearkitError: it is a link, through which another file would be written, or no regular file.
    """
    try:
        # Without O_NONBLOCK, some devices are waited for.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        # The first for a link, the others for a folder, a socket and a device.
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
            raise _no_lock_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_lock_file(path)
    return descriptor


def flocked(descriptor: int, path: Path) -> None:
    """Lock an open file, and wait until another process has let go of it."""
    _flock(descriptor, path, 0)


def _flock(descriptor: int, path: Path, how: int) -> bool:
    try:
        # flock's locks belong to the open file, so that children to whom the descriptor is passed share them.
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except BlockingIOError:
        return False
    except OSError as error:
        _warn(path, error)
    return True


def _no_lock_file(path: Path) -> RearkitError:
    return RearkitError(f"{path}: is a link, a folder or a device, not a lock of rearkit's; remove it")


def _warn(path: Path, error: OSError) -> None:
    """Say that a file system has no locks, as some network file systems are mounted."""
    say_once(f"warning: {path.parent}: locks don't work there ({error.strerror}); start nothing else in this folder")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock; if another process has it, wait."""
    descriptor = try_lock(path)
    if descriptor is None:
        # Said before waiting, which may take hours without a sign of life.
        say(f"waiting for another process, which holds {path}")
        descriptor = opened_lock(path)
        flocked(descriptor, path)
    try:
        yield
    finally:
        os.close(descriptor)
