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
    """
    members = {
        "classes.npy": _npy(classes, CLASSES),
        "json": (memoryview(json.dumps(dict(meta)).encode()),),
        "tokens.npy": _npy(tokens, TOKENS),
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


def _npy(array: np.ndarray, dtype: np.dtype[Any]) -> tuple[memoryview, memoryview]:
    """Return the header and the content of a ``.npy``."""
    content = np.ascontiguousarray(array, dtype)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(content))
    return header.getbuffer(), content.data
