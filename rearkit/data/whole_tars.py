"""Reading what a tar has in it, to its end: Python's reader takes damage in the middle of one for the end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO


def members_in_tar(file: IO[bytes], start: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed tar that lies somewhere in a file; offsets are those in the file.

    A member is yielded once it has been seen to end where the next one, or the end, begins. Its header tells too
    little: the checksum is a plain sum, which may hold though bytes are repeated in it, and the content has moved.

    Args:
        file: open; nothing else moves in it meanwhile.
        start: offset of the tar's first byte.
        size: bytes of the tar.

    Raises:
        tarfile.TarError: it is damaged, cut off or empty; the members before that have been yielded.
    """
    end = start + size
    file.seek(start)
    if not file.read(1):
        raise tarfile.ReadError("it is empty")
    file.seek(start)
    last: tarfile.TarInfo | None = None
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # or it would hold them all
            if last is not None:
                yield last
            last = member
            if member.offset_data + (member.size if member.isfile() else 0) > end:
                raise tarfile.ReadError(f"it is cut off in {member.name!r}")
        behind = archive.offset
    # What fills a content up to whole blocks is zeros, and so are the blocks that end a tar, if it has any.
    stop = behind
    if last is not None and last.isfile() and not last.issparse():
        stop = last.offset_data + last.size
    file.seek(stop)
    rest = file.read(max(min(behind + tarfile.BLOCKSIZE, end) - stop, 0))
    if any(rest):
        raise tarfile.ReadError(f"it is damaged at byte {stop - start + len(rest) - len(rest.lstrip(bytes(1)))}")
    if last is None:
        raise tarfile.ReadError("it is empty")
    yield last


def files_in_tar(file: IO[bytes], start: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the files among `members_in_tar`, and raise what it raises."""
    return (member for member in members_in_tar(file, start, size) if member.isfile())
