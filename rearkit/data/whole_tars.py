"""Reading what a tar has in it, to its end: Python's reader takes damage in the middle of one for the end."""

from __future__ import annotations

import copy
import tarfile
from collections.abc import Callable, Iterator
from typing import IO

from rearkit.data.class_folders import is_hidden
from rearkit.data.tar_headers import CheckedHeader, TarFault
from rearkit.system.console import say_once

CHUNK = 1 << 20
JOINED = "if it was made by joining tars, join them with tar -A, else copy it again"
UNSPARSE = "pack it again without --sparse (-S)"
# Listings of folders and names of volumes, which GNU tar writes for itself.
NOTES = (b"D", b"V")


def members_in_tar(file: IO[bytes], start: int, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed tar that lies somewhere in a file; offsets are those in the file.

    A member is yielded once it has been seen to end where the next one, or the end, begins. Its header tells too
    little: the checksum is a plain sum, which may hold though bytes are repeated in it, and the content has moved.

    Args:
        file: open; nothing else moves in it meanwhile.
        start: offset of the tar's first byte.
        size: bytes of the tar.

    Raises:
        tarfile.TarError: it is damaged, cut off or empty, or a member is sparse; the members before that have been
            yielded. What to do is told by `rearkit.data.tar_headers.remedy_of`.
    """
    end = start + size
    file.seek(start)
    if not file.read(1):
        raise TarFault("it is empty")
    file.seek(start)
    last: tarfile.TarInfo | None = None
    filled = start
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=CheckedHeader) as archive:
            archive.end = end  # type: ignore[attr-defined]  # for its headers
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it would hold them all
                if last is not None:
                    yield last
                last = member
                _check_place(member, end)
                filled = min(archive.offset, end)
                if archive.offset >= end:
                    break
            behind = min(archive.offset, end)
    except (ValueError, OverflowError) as error:  # numbers and names that Python cannot make out
        raise TarFault(f"a header cannot be read: {error}") from None
    _check_end(file, start, last, (filled, behind, end))
    if last is None:
        raise TarFault("it is empty")
    yield last


def _check_place(member: tarfile.TarInfo, end: int) -> None:
    if member.issparse():
        raise TarFault(f"{member.name!r} in it is sparse, with holes left out", UNSPARSE)
    if member.size < 0:
        raise TarFault(f"a header says {member.size} bytes for {member.name!r}")
    if member.offset_data + (member.size if member.isfile() else 0) > end:
        raise TarFault(f"it is cut off in {member.name!r}")


def _check_end(file: IO[bytes], start: int, last: tarfile.TarInfo | None, ends: tuple[int, int, int]) -> None:
    """Check that nothing but zeros fills the last content up to whole blocks, and that only zeros end the tar.

    Where others do, the content may have moved, though its header holds.

    Args:
        file: that the tar is in.
        start: of the tar.
        last: its last member.
        ends: of the last member's blocks, of the last header and content, of the tar.
    """
    filled, behind, end = ends
    content = filled if last is None or not last.isfile() else last.offset_data + last.size
    places = [_first_not_zero(file, content, filled), _first_not_zero(file, behind, end)]
    for place in places:
        if place is not None and place < behind + tarfile.BLOCKSIZE:
            raise TarFault(f"it is damaged at byte {place - start}")
        if place is not None:
            raise TarFault(f"more follows after its end at byte {behind - start}", JOINED)


def _first_not_zero(file: IO[bytes], place: int, end: int) -> int | None:
    file.seek(place)
    while part := file.read(min(CHUNK, max(end - place, 0))):
        if part != bytes(len(part)):
            return place + len(part) - len(part.lstrip(bytes(1)))
        place += len(part)
    return None


def files_in_tar(
    file: IO[bytes], start: int, size: int, where: str, see: Callable[[tarfile.TarInfo], None] = lambda _: None
) -> Iterator[tarfile.TarInfo]:
    """Yield the files among `members_in_tar`, and raise what it raises.

    A hard link to an earlier file of the tar is that file under another name, and yielded after the others. Other links
    and what else is no file are left out, and said with a count: an image that is lost should not go unnoticed.

    Args:
        file: see `members_in_tar`.
        start: likewise.
        size: likewise.
        where: what to call the tar in messages.
        see: is called with each member of any kind.
    """
    others: list[tarfile.TarInfo] = []
    for member in members_in_tar(file, start, size):
        see(member)
        if member.isfile():
            yield member
        elif not member.isdir() and member.type not in NOTES and not is_hidden(member.name):
            others.append(member)
    resolved = {id(link): found for link, found in _linked(file, start, size, others)}
    yield from resolved.values()
    if left := [other for other in others if id(other) not in resolved]:
        say_once(
            f"data: {where}: ignored {len(left)} links, pipes and others that are no files, the first {left[0].name}; "
            "pack the files of links themselves (tar --dereference --hard-dereference)"
        )


def _linked(
    file: IO[bytes], start: int, size: int, others: list[tarfile.TarInfo]
) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarInfo]]:
    """Yield the hard links to earlier files, and each as the file that it is."""
    links = {link.offset: link for link in others if link.islnk()}
    if not links:
        return
    # Read once more, so that names are held of those files alone that are linked to.
    wanted = {link.linkname for link in links.values()}
    held: dict[str, tarfile.TarInfo] = {}
    for member in members_in_tar(file, start, size):
        link, found = links.get(member.offset), member if member.isfile() else None
        if link is not None and link.linkname in held:
            found = copy.copy(held[link.linkname])
            found.name = link.name
            yield link, found
        if found is not None and member.name in wanted:
            held[member.name] = found
