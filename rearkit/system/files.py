"""Writing files so that nothing is lost: to a temporary name, flushed to the disk, then renamed.

A reader sees the old content or the new, never a part; a full disk leaves the old and removes the temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rearkit.errors import StorageError

TEMPORARY = ".tmp"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, a file or a folder to write; on success, it takes ``path``'s place.

    Raises:
        StorageError: the disk is full, read-only or forbidden; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        with storage_errors(path):  # before the temporary file is removed, which makes room on a full disk
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            yield temporary
            for file in temporary.rglob("*") if temporary.is_dir() else (temporary,):
                if file.is_file():
                    sync(file)
            if path.is_dir() and temporary.is_dir():
                remove(path)
            open_to_others(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn refusals to write into one line that says what to do.

    Raises:
        StorageError: the operating system, torch, numpy or safetensors could not write; it names ``path``.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or _says_full(error):
            free = shutil.disk_usage(_existing(path)).free / 2**20
            # Where there is room, it is a quota or a limit on the size of files that was met.
            raise StorageError(
                f"{path}: the disk is full, or a quota is used up ({free:.0f} MiB are free); what was written before "
                "is kept. Free some space and run again: it goes on from there"
            ) from error
        if number in FORBIDDEN:
            assert isinstance(error, OSError)
            place = path if error.filename is None else error.filename
            raise StorageError(
                f"{place}: {error.strerror}, while writing {path}; mend that, or choose another folder with --out"
            ) from error
        raise


def _says_full(error: Exception) -> bool:
    """Tell whether a library's own error means that a write failed for want of space.

    torch reports a failed write of its files as a RuntimeError of its zip writer, safetensors names the system's error
    by number, numpy counts what it could write.
    """
    text = str(error)
    if isinstance(error, RuntimeError):
        return ("inline_container" in text or "PytorchStreamWriter" in text) and "Reader" not in text
    if type(error).__name__ == "SafetensorError":
        return any(f"os error {number}" in text for number in FULL)
    return isinstance(error, OSError) and error.errno is None and "requested and" in text and "written" in text


def open_to_others(path: Path) -> None:
    """Give a new file the permissions that any new file gets; safetensors makes its own readable by nobody else."""
    if path.is_file() and not path.stat().st_mode & 0o077:
        umask = os.umask(0o077)
        os.umask(umask)
        path.chmod(0o666 & ~umask)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hash a file's content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
