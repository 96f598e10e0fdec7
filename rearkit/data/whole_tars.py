"""Reading what a tar has in it, to its end: Python's reader takes damage in the middle of one for the end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO


def files_in_tar(file: IO[bytes], start: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an uncompressed tar that lies somewhere in a file; offsets are those in the file.

    Args:
        file: open, and not used otherwise meanwhile.
        start: offset of the tar's first byte.
        size: bytes of the tar.

    Raises:
        tarfile.TarError: it is damaged or cut off.
    """
    end = start + size
    file.seek(start)
    first = file.read(tarfile.BLOCKSIZE)
    file.seek(start)
    if not first:
        raise tarfile.ReadError("it is empty")
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.offset_data + (member.size if member.isfile() else 0) > end:
                raise tarfile.ReadError(f"it is cut off in {member.name!r}")
            if member.isfile():
                yield member
        behind = archive.offset
    # A tar ends in blocks of zeros; some programs leave them out.
    file.seek(min(behind, end))
    block = file.read(min(tarfile.BLOCKSIZE, max(end - behind, 0)))
    if any(block):
        raise tarfile.ReadError(f"it is damaged at byte {behind - start}")
