"""An ``.npz``: what it says of itself, compared with what there is, before any memory is taken for it; its members."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

# What reading a damaged archive raises: numpy, zipfile and zlib do not agree on one error. RuntimeError: encrypted, or
# nested without end; MemoryError: nested deeper than Python's parser goes.
DAMAGE = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
# A byte of deflate gives 1,032 at most.
MOST_DEFLATED = 1100
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def check_npz(path: Path) -> None:
    """Check the members of an archive by its directory and the headers of its arrays; their content is not read.

    Raises:
        ValueError: one is encrypted, compressed as numpy never does, of Python objects, or of another size than said.
        Exception: others of `DAMAGE`, where it is no archive at all.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.compress_size for member in members) > size:
            raise ValueError("its members are larger than the file; copy it again")
        for member in members:
            _check_member(member)
            if member.filename.endswith(".npy"):
                _check_array(archive, member)


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted; save it without a password")
    if member.compress_type not in COMPRESSIONS:
        raise ValueError(f"{name} is compressed by method {member.compress_type}; save it by numpy.savez_compressed")
    factor = MOST_DEFLATED if member.compress_type == zipfile.ZIP_DEFLATED else 1
    if member.file_size > factor * member.compress_size:
        raise ValueError(f"{name} cannot have {member.file_size:,} bytes in {member.compress_size:,}")


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    name = member.filename
    with archive.open(member) as file:
        shape, _, dtype = read_npy_header(file)
        begin = file.tell()
    if np.dtype(dtype).hasobject:
        raise ValueError(f"{name} holds Python objects, which are not read; save numbers")
    said = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or begin + said != member.file_size:
        raise ValueError(f"{name} should have {said:,} bytes by its header, and has {member.file_size - begin:,}")


def read_npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of a ``.npy``: shape, whether it is in Fortran order, dtype."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return shape, fortran, dtype


def write_npy_member(archive: zipfile.ZipFile, name: str, count: int, rows: Iterator[np.ndarray]) -> None:
    """Write an array of ``count`` rows, which arrive in pieces, into an ``.npz``; its bytes depend on them alone."""
    # The header comes first in the file, and needs dtype and shape.
    first = next(rows)
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(first.dtype),
        "fortran_order": False,
        "shape": (count, *first.shape[1:]),
    }
    # The size is unknown when the member is begun, and may exceed the 4 GiB of a plain zip.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for piece in chain([first], rows):
            member.write(piece.tobytes())
