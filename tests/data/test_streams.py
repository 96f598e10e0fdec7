from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tars import write_tar

from rearkit.data.access import Access
from rearkit.data.bad_samples import BadSamples, Unusable
from rearkit.data.decoding import Decoding
from rearkit.data.image_shards import read_images
from rearkit.data.streams import Ahead
from rearkit.errors import DataError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


KINDS = {"good": lambda i: png(i), "broken": lambda i: b"no image", "cut off": lambda i: png(i)[:-30]}


@given(st.lists(st.sampled_from(sorted(KINDS)), max_size=40), st.integers(0, 4))
def test_images_come_in_order_by_any_number_of_threads(kinds: list[str], threads: int) -> None:
    found = []
    with Ahead[int](Decoding(6), threads) as ahead:
        for index, kind in enumerate(kinds):
            found += list(ahead.add(KINDS[kind](index), index))
        assert len(found) == max(0, len(kinds) - ahead.window)
        found += list(ahead.rest())
    assert [index for index, _ in found] == list(range(len(kinds)))
    for kind, (index, image) in zip(kinds, found, strict=True):
        if kind == "good":
            assert isinstance(image, torch.Tensor) and torch.equal(image, torch.full_like(image, index))
        else:
            assert isinstance(image, Unusable)


def test_failures_are_taken_out_and_the_rest_stays_in_order() -> None:
    with Ahead[int](Decoding(6), 2) as ahead:
        for index in range(9):
            assert not list(ahead.add(b"" if index % 3 == 1 else png(index), index))
        assert [index for index, _ in ahead.failed()] == [1, 4, 7]
        assert [index for index, _ in ahead.rest()] == [0, 2, 3, 5, 6, 8]


def shard(path: Path, cut: int, broken: tuple[int, ...] = ()) -> Path:
    members = (
        (f"{index:03d}.{suffix}", content)
        for index in range(20)
        for suffix, content in (("cls", b"1"), ("png", b"none" if index in broken else png(index)))
    )
    write_tar(path, members)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return path


@pytest.mark.parametrize("cut", [0, 9000, 11000, 15000])
@pytest.mark.parametrize("broken", [(), (3, 19), tuple(range(20))])
def test_threads_change_neither_images_nor_what_is_counted(cut: int, broken: tuple[int, ...], tmp_path: Path) -> None:
    paths = {str(shard(tmp_path / "0.tar", cut, broken)): 20, str(shard(tmp_path / "1.tar", 0)): 20}
    results = []
    for threads in (0, 1, 3):
        bad = BadSamples(1, 40)
        images = list(read_images(paths, 6, 2, bad, access=Access(threads=threads)))
        results.append(([(i.key, i.label, int(i.image[0, 0, 0])) for i in images], bad.reasons, bad.good))
    assert results[0] == results[1] == results[2]


def test_too_many_failures_stop_the_threads_too(tmp_path: Path) -> None:
    path = str(shard(tmp_path / "0.tar", 0, (2, 3)))
    with pytest.raises(DataError, match="1 samples skipped"):
        list(read_images({path: 20}, 6, 2, BadSamples(0, 20), access=Access(threads=2)))
