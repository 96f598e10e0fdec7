"""Atomic writes: to a temporary name, flushed to the disk, then renamed.

A reader sees the old content or the new, never a part of it. If the disk is full, the old content stays and the
temporary file is removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from rearkit.errors import StorageError
from rearkit.system.console import say_once

TEMPORARY = ".tmp"
_CALLS = count()
# EDQUOT: a user's quota is used up. EFBIG: a limit on the size of files, such as ulimit's, is met.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# EROFS: mounted read-only. ENOTDIR: a part of the path is a file.
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
# A name that is taken: a folder where a file is to be, or a file where a folder is.
TAKEN = (errno.EEXIST, errno.EISDIR)
# The disk or the file system fails: EIO, ESTALE. EINVAL: it cannot flush. EXDEV: a rename to another file system.
FAILING = (errno.EIO, errno.EINVAL, errno.EXDEV, errno.ESTALE, errno.ENAMETOOLONG)

# Of a folder, on file systems that have no such call.
NO_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, for a file or a folder; on success, rename it to ``path``.

    Raises:
        StorageError: the disk is full, read-only, forbidden or fails; ``path`` is unchanged.
    """
    # In the same folder, since a rename is atomic only within one file system.
    temporary = _temporary(path)
    try:
        # Inside the `try`, so that the message gives the free space before the temporary file is removed.
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _put_in_place(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


def _temporary(path: Path) -> Path:
    """Return a name beside ``path`` that no other process or call has, so that none writes into another's file."""
    own = f".{os.getpid()}-{next(_CALLS)}{TEMPORARY}"
    # Less of a name that is as long as names can be; how it begins says whose it is.
    begin = f".{path.name}".encode()[: 255 - len(own)].decode(errors="ignore")
    return path.with_name(begin + own)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder, of which the caller holds the lock."""
    for leftover in folder.glob(f".*{TEMPORARY}*"):
        remove(leftover)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Flush what was written and rename it.

    Raises:
        StorageError: the disk failed; other errors are those of `storage_errors`.
    """
    try:
        # Flushed before the rename: otherwise a power cut could leave the new name with no content behind it.
        for file in temporary.rglob("*") if temporary.is_dir() else (temporary,):
            if file.is_file():
                sync(file)
        # A rename replaces a file but no folder that has content. For folders, a reader may see none for a moment.
        if path.is_dir() and temporary.is_dir():
            remove(path)
        open_to_others(temporary)
        temporary.replace(path)
        # The rename itself is an entry of the folder, which has to reach the disk too.
        sync(path.parent)
    except OSError as error:
        if error.errno not in FAILING:
            raise
        raise StorageError(
            f"{path}: {error.strerror}, while it was put in place; what was written before is kept. Check the disk, or "
            "choose another place"
        ) from error


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into a one-line error that says what to do.

    Raises:
        StorageError: the operating system, torch, numpy or safetensors could not write ``path``.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or _says_full(error):
            free = shutil.disk_usage(_existing(path)).free / 2**20
            # The free space is reported because, if there is plenty, a quota or a file size limit is the cause.
            raise StorageError(
                f"{path}: the disk is full, or a quota is used up ({free:.0f} MiB are free); what was written before "
                "is kept. Free some space and run again: it goes on from there"
            ) from error
        # Of a rename, the name that it should have got. It may be a parent folder, which then is what has to be fixed.
        place = getattr(error, "filename2", None) or getattr(error, "filename", None) or path
        if number in FORBIDDEN or (number in TAKEN and Path(place) in (path, path.parent)):
            raise StorageError(
                f"{place}: {os.strerror(number or 0)}, while writing {path}; fix that, or choose another place"
            ) from error
        # Of this file or its neighbours; one of another file is no failed write.
        about = None if number not in FAILING else getattr(error, "filename", None)
        if about is not None and Path(about).is_relative_to(path.parent):
            raise StorageError(
                f"{about}: {os.strerror(number or 0)}, while writing {path}; what was written before is kept. Check "
                "the disk, or choose another place"
            ) from error
        raise


def check_disk(path: Path | str, error: Exception) -> None:
    """Raise StorageError where a file could not be read since the disk fails, and not for what is in it."""
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.EROFS):
        raise StorageError(f"{path}: {error.strerror}, while reading it; check the disk, then run again") from None


def _says_full(error: Exception) -> bool:
    """Return whether a library's own error means that a write failed for lack of space."""
    text = str(error)
    # torch reports a failed write as a RuntimeError of its zip writer; its zip reader's errors look alike.
    if isinstance(error, RuntimeError):
        return ("inline_container" in text or "PytorchStreamWriter" in text) and "Reader" not in text
    # safetensors names the operating system's error by number. Compared by name, to import nothing.
    if type(error).__name__ == "SafetensorError":
        return any(f"os error {number}" in text for number in FULL)
    # numpy says how many bytes were requested and how many written, without an error number.
    return isinstance(error, OSError) and error.errno is None and "requested and" in text and "written" in text


def open_to_others(path: Path) -> None:
    """Give a new file the default permissions; safetensors writes files that only their owner can read."""
    if path.is_file() and not path.stat().st_mode & 0o077:
        # The umask cannot be read without setting it, so it is set and put back at once.
        umask = os.umask(0o077)
        os.umask(umask)
        path.chmod(0o666 & ~umask)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; what has no UTF-8, as in file names of old archives, is written out."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; return None if it is missing or not valid JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk.

    Raises:
        OSError: the disk fails; named, as the operating system does not name what is open.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH or not path.is_dir():
            raise OSError(error.errno, error.strerror, str(path)) from None
        say_once(
            f"warning: a file system here cannot flush folders ({error.strerror}); after a power cut, what was "
            "written last may be missing"
        )
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    # A link to a folder is removed itself, not what it points to.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        # In pieces of 1 MiB, since checkpoints may be larger than the memory.
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
