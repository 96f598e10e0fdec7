"""Headers of tars, checked before they are followed: a file of somebody else's may say anything in them."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import Any

# Of a long name, or of what a pax header has: those that programs write have a few hundred bytes.
MOST_BYTES = 1 << 20
# A member has a pax header, a long name, a link's long name.
MOST_HEADERS = 8
NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
SPARSE = ("GNU.sparse.", "SCHILY.realsize", "SUN.holesdata")
RECORD = re.compile(rb"(\d{1,9}) [^=]+=")
# Python's search for a record takes the square of a number's digits.
LONG_NUMBER = re.compile(rb"\d{100}")


class TarFault(tarfile.ReadError):
    """A tar cannot be read, or not rightly.

    Attributes:
        remedy: what to do, where it is not what is done about any damage.
    """

    def __init__(self, what: str, remedy: str | None = None) -> None:
        super().__init__(what)
        self.remedy = remedy


def remedy_of(error: tarfile.TarError, usual: str) -> str:
    """Return what to do about a tar that cannot be read."""
    return getattr(error, "remedy", None) or usual


def is_tar(path: Path) -> bool:
    """Whether a file begins as a tar does; Python's own check follows what the first header says."""
    try:
        with path.open("rb") as file:
            tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except (OSError, ValueError, tarfile.TarError):
        return False
    return True


class CheckedHeader(tarfile.TarInfo):
    """A member whose sizes are checked before anything is read by them; a sparse one is marked, its map not read.

    It overrides what `tarfile` documents as its hooks, and calls; what they should refuse is in the tests.
    """

    __slots__ = ()  # a tar may have millions

    def _proc_member(self, archive: Any) -> tarfile.TarInfo:
        where = archive.fileobj.tell() - tarfile.BLOCKSIZE
        if self.size < 0:
            raise TarFault(f"a header says {self.size} bytes for {self.name!r}")
        if self.type == tarfile.GNUTYPE_SPARSE:
            self.sparse: Any = []
            return self._proc_builtin(archive)  # type: ignore[attr-defined]
        if self.type in (*NAMES, *PAX):
            if self.size > MOST_BYTES:
                raise TarFault(f"a header has {self.size:,} bytes of names; {MOST_BYTES:,} are read")
            archive.nested = getattr(archive, "nested", 0) + 1
            if archive.nested > MOST_HEADERS:
                raise TarFault(f"a member has more than {MOST_HEADERS} headers")
            if self.type in PAX:
                self._check_records(archive)
        member = super()._proc_member(archive)  # type: ignore[misc]
        if member.offset_data <= where:
            raise TarFault(f"a header leads back, behind byte {where}")
        archive.nested = 0
        return member

    def _check_records(self, archive: Any) -> None:
        """Check what a pax header has; of the tar's last one, which no member follows, there is no more to read."""
        begin = archive.fileobj.tell()
        content = archive.fileobj.read(self.size)
        place = 0
        while (record := RECORD.match(content, place)) is not None:
            length = int(record[1])
            if record.end() > place + length:  # or the same bytes would be many names
                raise TarFault("a pax header has a record that is longer than it says")
            place += length
        if LONG_NUMBER.search(content):
            raise TarFault("a pax header has a number of 100 digits")
        if sum(map(len, archive.pax_headers.values())) > MOST_BYTES:
            raise TarFault(f"its global headers have more than {MOST_BYTES:,} bytes")
        if self.type == tarfile.XGLTYPE:
            after = begin + -(-self.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            archive.fileobj.seek(after)
            ends = after >= getattr(archive, "end", after + 1) or not any(archive.fileobj.read(tarfile.BLOCKSIZE))
            if ends and archive.nested == 1:
                archive.offset = after
                raise tarfile.EOFHeaderError("end of file header")  # type: ignore[attr-defined]
        archive.fileobj.seek(begin)

    def _proc_gnusparse_00(self, member: Any, *_: Any) -> None:
        member.sparse = []

    def _proc_gnusparse_01(self, member: Any, *_: Any) -> None:
        member.sparse = []

    def _proc_gnusparse_10(self, member: Any, *_: Any) -> None:
        member.sparse = []

    def _apply_pax_info(self, pax_headers: dict[str, str], encoding: str, errors: str) -> None:
        if any(name.startswith(SPARSE) for name in pax_headers):
            self.sparse = []
        plain = {k: v for k, v in pax_headers.items() if k not in ("GNU.sparse.size", "GNU.sparse.realsize")}
        super()._apply_pax_info(plain, encoding, errors)  # type: ignore[misc]
