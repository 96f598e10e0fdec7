"""Token shards are written byte for byte as webdataset writes them, without its copies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset

from rearkit.data.token_shards import TokenData
from rearkit.data.token_writing import CLASSES, MAX_CODES, TOKENS, write_token_shard


@pytest.mark.parametrize(("rows", "width"), [(0, 4), (1, 1), (7, 3), (5, 256), (2000, 16), (20, 1)])
@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_a_shard_has_the_bytes_that_webdataset_writes(rows: int, width: int, dtype: type, tmp_path: Path) -> None:
    generator = np.random.default_rng(rows)
    tokens = generator.integers(MAX_CODES, size=(rows, width)).astype(dtype)
    classes, meta = generator.integers(1000, size=rows), {"source": "Straße.jsonl", "skipped": {}}
    write_token_shard(tmp_path / "ours.tar", tokens, classes, meta)
    with webdataset.TarWriter(str(tmp_path / "theirs.tar"), mtime=0) as writer:
        arrays = {"tokens.npy": tokens.astype(TOKENS), "classes.npy": classes.astype(CLASSES)}
        writer.write({"__key__": "000000", **arrays, "json": meta})
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


def test_arrays_in_column_order_are_written_in_row_order(tmp_path: Path) -> None:
    tokens = np.asfortranarray(np.arange(12, dtype=TOKENS).reshape(4, 3))
    write_token_shard(tmp_path / "0.tar", tokens, np.arange(4), {})
    assert TokenData.from_shards([tmp_path / "0.tar"]).take(range(4))[0].tolist() == tokens.tolist()


def test_writing_needs_no_torch() -> None:
    script = "import sys, rearkit.data.token_writing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
