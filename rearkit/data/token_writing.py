"""Writing token shards, without torch: a process that only converts stays small.

What is in a shard, and how it is read, is told in `rearkit.data.token_shards`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rearkit.errors import DataError
from rearkit.system.files import replacing

MAX_CODES = 2**16
TOKENS, CLASSES = np.dtype("<u2"), np.dtype("<i4")


def write_token_shard(path: Path, tokens: np.ndarray, classes: np.ndarray, meta: Mapping[str, Any]) -> None:
    """Write one shard, whole or not at all.

    The file has the bytes that ``webdataset.TarWriter`` would write, but arrays of the right type are never copied.

    Args:
        path: the ``.tar``.
        tokens: (n, N), values in [0, 65536).
        classes: (n,).
        meta: anything JSON can hold.

    Raises:
        DataError: a token or class is no whole number in its range.
    """
    members = {
        "classes.npy": _npy(as_whole(classes, CLASSES, "class"), CLASSES),
        "json": (memoryview(json.dumps(dict(meta)).encode()),),
        "tokens.npy": _npy(as_whole(tokens, TOKENS, "token"), TOKENS),
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        for name, pieces in members.items():
            info = tarfile.TarInfo(f"000000.{name}")
            info.size = sum(piece.nbytes for piece in pieces)
            info.mode, info.uname, info.gname = 0o444, "bigdata", "bigdata"
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
            for piece in pieces:
                file.write(piece)
            file.write(bytes(-file.tell() % tarfile.BLOCKSIZE))
        # Two empty blocks end a tar, which is filled up to whole records.
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))


def as_whole(array: Any, dtype: np.dtype[Any], what: str) -> np.ndarray:
    """Return numbers as a type of token shards, in which none becomes another.

    Args:
        array: whole numbers, of any type.
        dtype: `TOKENS` or `CLASSES`.
        what: of what they are, for the message.

    Raises:
        DataError: a number is negative, too large or not whole; the message says which and where.
    """
    given = np.asarray(array)
    # Always so of tokens that were read from a shard.
    if given.dtype == dtype and dtype.kind == "u":
        return given
    most = np.iinfo(dtype).max
    # All as positive statements, which NaN fails.
    good = (given >= 0) & (given <= most)
    if given.dtype.kind == "f":
        good &= given == np.floor(given)
    if not good.all():
        place = tuple(int(index) for index in np.argwhere(~good)[0])
        raise DataError(
            f"{what} {given[place]} of image {place[0]}: expected a whole number from 0 to {most}; correct the data"
        )
    return given.astype(dtype, copy=False)


def _npy(array: np.ndarray, dtype: np.dtype[Any]) -> tuple[memoryview, memoryview]:
    """Return the header and the content of a ``.npy``."""
    content = np.ascontiguousarray(array, dtype)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(content))
    return header.getbuffer(), content.data
