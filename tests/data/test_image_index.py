from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tars import write_tar

from rearkit.data.access import Access
from rearkit.data.bad_samples import LOST, UNFETCHED, BadSamples
from rearkit.data.decoding import Decoding
from rearkit.data.fetching import Retry, ShardCache
from rearkit.data.image_index import OPEN_FILES, ROW, ImageIndex, ImageReader, write_index
from rearkit.data.image_shards import read_images
from rearkit.errors import DataError

ONCE = Access(Retry(tries=1))
Members = list[tuple[str, bytes]]


def sample(index: int, label: bytes | None = None) -> Members:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), index, np.uint8)).save(buffer, format="png")
    return [
        (f"{index:04d}.cls", str(index % 3).encode() if label is None else label),
        (f"{index:04d}.png", buffer.getvalue()),
    ]


def good(*indices: int) -> Members:
    return [member for index in indices for member in sample(index)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def index_of(folder: Path, shards: dict[str, int], bad: BadSamples) -> ImageIndex:
    return ImageIndex.open(folder / "index.npy", write_index(folder / "index.npy", shards, 3, bad, ONCE))


def reader(index: ImageIndex, folder: Path) -> ImageReader:
    return ImageReader(index, ShardCache(folder / "cache", 2, ONCE.retry), Decoding(6))


def test_an_index_finds_what_reading_front_to_back_finds(tmp_path: Path) -> None:
    members = [*good(0, 1), *sample(2, label=b""), *sample(3, label=b"x"), sample(4)[0], sample(5)[1], *good(6)]
    first, second = write_tar(tmp_path / "a.tar", members), write_tar(tmp_path / "b.tar", good(7, 8, 9))
    shards = {str(first): 6, str(second): 3}
    bad, other = BadSamples(1, 9), BadSamples(1, 9)
    index = index_of(tmp_path, shards, bad)
    expected = list(read_images(shards, 6, 3, other))
    assert len(index) == len(expected) == 6
    assert (bad.reasons, bad.good) == (other.reasons, other.good)
    found = [reader(index, tmp_path).decode(i) for i in (5, 0, 3, 1, 4, 2)]  # in any order
    for i, (image, label) in zip((5, 0, 3, 1, 4, 2), found, strict=True):
        assert label == expected[i].label
        assert image.equal(expected[i].image)
    assert [index.shard_of(i) for i in range(6)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("cut", [600, 1300, 2000, 3000])
def test_samples_lost_with_a_truncated_shard_are_counted(cut: int, tmp_path: Path) -> None:
    whole, broken = write_tar(tmp_path / "a.tar", good(0, 1)), write_tar(tmp_path / "b.tar", good(2, 3, 4))
    with broken.open("r+b") as file:
        file.truncate(cut)
    bad = BadSamples(1, 5)
    index = index_of(tmp_path, {str(whole): 2, str(broken): 3}, bad)
    assert len(index) + bad.count == 5
    assert set(bad.reasons) <= {LOST, "no image in the sample"}
    for i in range(len(index)):
        reader(index, tmp_path).decode(i)
    with pytest.raises(DataError, match=r"more than the 1\.0% that"):
        write_index(tmp_path / "other.npy", {str(broken): 3, str(whole): 200}, 3, BadSamples(0.01, 3), ONCE)


def test_a_shard_that_cannot_be_fetched_counts_as_lost(tmp_path: Path) -> None:
    bad = BadSamples(1, 0)
    index = index_of(tmp_path, {"pipe:exit 7": 0, str(write_tar(tmp_path / "a.tar", good(0))): 1}, bad)
    assert len(index) == 1
    assert bad.reasons == {UNFETCHED: 100}


def test_a_compressed_shard_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(write_tar(tmp_path / "b.tar", good(0)).read_bytes()))
    with pytest.raises(DataError, match=r"a\.tar: compressed"):
        index_of(tmp_path, {str(path): 1}, BadSamples(1, 1))


def test_an_index_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    first, second = write_tar(tmp_path / "a.tar", good(0, 1)), tmp_path / "b.tar"
    write_tar(second, good(2))
    shards = {str(first): 2, str(second): 1}
    part = tmp_path / "index-000000.part.npy"
    with part.open("wb") as file:
        np.save(file, np.zeros(1, ROW))
    bad = BadSamples(1, 3)
    index = index_of(tmp_path, shards, bad)
    assert len(index) == 2 and index.rows[0]["size"] == 0  # the part was not made again
    assert (bad.good, bad.count) == (2, 1)
    assert not list(tmp_path.glob("*.part.npy"))


def test_an_index_is_written_so_that_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a map that cannot be written kills the process without a word."""

    mapped = np.memmap

    def for_reading(*given: Any, mode: str, **named: Any) -> np.ndarray:
        assert mode == "r"
        return mapped(*given, mode="r", **named)

    monkeypatch.setattr(np, "memmap", for_reading)
    shards = {str(write_tar(tmp_path / "a.tar", good(0, 1))): 2, str(write_tar(tmp_path / "b.tar", good(2))): 1}
    write_index(tmp_path / "index.npy", shards, 3, BadSamples(0, 3), ONCE)
    rows = np.load(tmp_path / "index.npy")
    assert rows.dtype == ROW and len(rows) == 3 and all(rows["size"] > 0)


def test_what_changed_since_it_was_indexed_is_a_bad_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", good(0, 1, 2))
    index = index_of(tmp_path, {str(path): 3}, BadSamples(1, 3))
    with path.open("r+b") as file:
        file.truncate(int(index.rows[2]["offset"]) + 10)
    images = reader(index, tmp_path)
    images.read(0)
    with pytest.raises(DataError, match="cut off"):
        images.read(2)
    path.unlink()
    images.read(0)  # is open
    with pytest.raises(DataError, match="cannot be read: No such file"):
        reader(index, tmp_path).read(0)


def test_an_index_of_other_shards_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", good(0, 1, 2))
    write_index(tmp_path / "index.npy", {str(path): 3}, 3, BadSamples(1, 3), ONCE)
    for counts in ({str(path): 2}, {str(path): 3, "b.tar": 1}):
        with pytest.raises(DataError, match="other shards"):
            ImageIndex.open(tmp_path / "index.npy", counts)
    (tmp_path / "index.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        ImageIndex.open(tmp_path / "index.npy", {str(path): 3})
    with pytest.raises(DataError, match="no training images"):
        write_index(tmp_path / "index.npy", {str(write_tar(tmp_path / "b.tar", [])): 0}, 3, BadSamples(1, 3), ONCE)


def test_few_files_are_open_at_a_time_and_few_copies_kept(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / f"{number:03d}.tar", good(number % 200)) for number in range(OPEN_FILES + 10)]
    pipes = {f"pipe:cat {path}": 1 for path in paths}
    index = index_of(tmp_path, pipes, BadSamples(0, len(pipes)))
    images = reader(index, tmp_path)
    before = open_files()
    for i in range(len(index)):
        images.decode(i)
    assert open_files() - before == OPEN_FILES
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    images.decode(12)  # its copy is gone, but it is open
