from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from rearkit.data import token_shards
from rearkit.data.token_shards import TokenData, read_meta, whole_shards
from rearkit.data.token_writing import MAX_CODES, write_token_shard
from rearkit.errors import DataError
from rearkit.system.files import sha256


@st.composite
def shard_arrays(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and classes of some shards; some may be empty, not all."""
    width = draw(st.integers(1, 9))
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(any))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    return [(generator.integers(MAX_CODES, size=(size, width)), generator.integers(1000, size=size)) for size in sizes]


def write(folder: Path, arrays: list[tuple[np.ndarray, np.ndarray]]) -> list[Path]:
    paths = [folder / f"{index:03d}.tar" for index in range(len(arrays))]
    for path, (tokens, classes) in zip(paths, arrays, strict=True):
        write_token_shard(path, tokens, classes, {"source": path.name})
    return paths


@given(shard_arrays())
def test_shards_hold_what_was_written(tmp_path_factory: pytest.TempPathFactory, arrays: list) -> None:
    data = TokenData.from_shards(write(tmp_path_factory.mktemp("shards"), arrays))
    tokens, classes = data.take(range(len(data)))
    assert np.array_equal(tokens.numpy(), np.concatenate([tokens for tokens, _ in arrays]))
    assert np.array_equal(classes.numpy(), np.concatenate([classes for _, classes in arrays]))
    assert (data.num_tokens, len(data)) == (arrays[0][0].shape[1], sum(len(classes) for _, classes in arrays))


@given(shard_arrays(), st.data())
def test_gathering_from_mapped_shards_equals_gathering_from_arrays(
    tmp_path_factory: pytest.TempPathFactory, arrays: list, data: st.DataObject
) -> None:
    mapped = TokenData.from_shards(write(tmp_path_factory.mktemp("shards"), arrays))
    held = TokenData.from_arrays(*(np.concatenate(parts) for parts in zip(*arrays, strict=True)))
    indices = data.draw(st.lists(st.integers(0, len(held) - 1), max_size=20))
    for first, second in zip(mapped.take(indices), held.take(indices), strict=True):
        assert np.array_equal(first.numpy(), second.numpy())
        assert first.dtype == second.dtype
    for row, index in enumerate(indices):  # in the order asked for, repeats included
        assert np.array_equal(mapped.take(indices)[0][row].numpy(), held.take([index])[0][0].numpy())


def test_tokens_are_read_when_they_are_taken(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [(np.zeros((4, 3)), np.zeros(4))])
    data = TokenData.from_shards([path])
    content = path.read_bytes()
    with path.open("r+b") as file:  # a value changed on the disk is seen
        file.seek(content.index(b"\x93NUMPY", content.index(b"tokens.npy")) + 128)
        file.write(b"\x07\x00")
    assert data.take([0])[0].tolist() == [[7, 0, 0]]


def test_a_shard_that_is_cut_off_under_a_reader_is_told_by_name(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [(np.zeros((4, 3)), np.zeros(4))])
    data = TokenData.from_shards([path])
    os.truncate(path, 300)
    with pytest.raises(DataError, match=f"{path.name}: token shard was cut off"):
        data.take([3])


def test_a_shard_is_a_tar_of_arrays_that_others_can_read(tmp_path: Path) -> None:
    tokens, classes = np.arange(12).reshape(4, 3), np.arange(4)
    (path,) = write(tmp_path, [(tokens, classes)])
    (sample,) = webdataset.WebDataset(str(path), shardshuffle=False).decode()
    assert np.array_equal(sample["tokens.npy"], tokens)
    assert sample["tokens.npy"].dtype == np.uint16
    assert np.array_equal(sample["classes.npy"], classes)
    assert read_meta(path) == {"source": "000.tar"}


def test_the_same_content_makes_the_same_bytes(tmp_path: Path) -> None:
    arrays = [(np.ones((4, 3)), np.ones(4))]
    (first,), (second,) = write(tmp_path / "a", arrays), write(tmp_path / "b", arrays)
    assert first.read_bytes() == second.read_bytes()


def test_any_truncation_is_a_data_error_that_names_the_shard(tmp_path: Path) -> None:
    good, bad = write(tmp_path, [(np.ones((40, 9)), np.ones(40)), (np.ones((40, 9)), np.ones(40))])
    content = bad.read_bytes()
    with tarfile.open(bad) as archive:
        needed = {m.name: m.offset_data + m.size for m in archive}
    end = max(size for name, size in needed.items() if name.endswith(".npy"))
    for length in [*range(0, end, 97), end - 1]:
        bad.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"001\.tar: token shard is damaged .* run the tokens stage again"):
            TokenData.from_shards([good, bad])


@pytest.mark.parametrize("mask", [0xFF, 0x01])
def test_damage_to_the_headers_of_tokens_is_a_data_error_and_never_other_numbers(tmp_path: Path, mask: int) -> None:
    (path,) = write(tmp_path, [(np.arange(30).reshape(10, 3), np.arange(10))])
    content = path.read_bytes()
    expected = TokenData.from_shards([path]).take(range(10))
    with tarfile.open(path) as archive:
        member = archive.getmember("000000.tokens.npy")
    for place in itertools.chain(
        range(member.offset, member.offset + 160, 7), range(member.offset_data, member.offset_data + 128, 5)
    ):
        damaged = bytearray(content)
        damaged[place] ^= mask
        path.write_bytes(damaged)
        try:
            tokens, classes = TokenData.from_shards([path]).take(range(10))
        except DataError as error:
            assert "000.tar" in str(error)
        else:
            assert np.array_equal(tokens.numpy(), expected[0].numpy()), place
            assert np.array_equal(classes.numpy(), expected[1].numpy()), place


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100, bytes(10240)])
def test_what_is_no_shard_is_a_data_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.tar: token shard is damaged"):
        TokenData.from_shards([tmp_path / "bad.tar"])


def test_a_tar_of_something_else_is_a_data_error(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "images.tar")) as writer:
        writer.write({"__key__": "000000", "png": b"x", "cls": 1})
    with pytest.raises(DataError, match=r"images\.tar: token shard is damaged"):
        TokenData.from_shards([tmp_path / "images.tar"])


def test_a_missing_shard_is_a_data_error(tmp_path: Path) -> None:
    (good,) = write(tmp_path, [(np.ones((4, 3)), np.ones(4))])
    with pytest.raises(DataError, match=r"gone\.tar: token shard is missing"):
        TokenData.from_shards([good, tmp_path / "gone.tar"])


def put_together(path: Path, members: dict[str, np.ndarray]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, array in members.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            info = tarfile.TarInfo(name)
            info.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(info, buffer)
        info = tarfile.TarInfo("000000.json")
        info.size = 2
        archive.addfile(info, io.BytesIO(json.dumps({}).encode()))
    return path


@pytest.mark.parametrize(
    ("tokens", "classes"),
    [
        (np.zeros((4, 3), np.uint16), np.zeros(5, np.int32)),
        (np.zeros(4, np.uint16), np.zeros(4, np.int32)),
        (np.zeros((4, 3), np.float32), np.zeros(4, np.int32)),
    ],
    ids=["classes of another number", "tokens without rows", "tokens that are no whole numbers"],
)
def test_arrays_that_do_not_fit_each_other_are_a_data_error(
    tokens: np.ndarray, classes: np.ndarray, tmp_path: Path
) -> None:
    path = put_together(tmp_path / "odd.tar", {"000000.tokens.npy": tokens, "000000.classes.npy": classes})
    with pytest.raises(DataError, match=r"odd\.tar: token shard is damaged"):
        TokenData.from_shards([path])


def test_shards_of_different_widths_are_a_data_error(tmp_path: Path) -> None:
    paths = write(tmp_path, [(np.ones((4, 3)), np.ones(4)), (np.ones((4, 5)), np.ones(4))])
    with pytest.raises(DataError, match=r"001\.tar.* 5 tokens an image.* 3"):
        TokenData.from_shards(paths)


@pytest.mark.parametrize("arrays", [[], [(np.empty((0, 3)), np.empty(0))]])
def test_no_tokens_at_all_are_a_data_error(arrays: list, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokens"):
        TokenData.from_shards(write(tmp_path, arrays))


def three_shards(folder: Path, sizes: tuple[int, ...] = (10, 10, 2)) -> dict[Path, str]:
    paths = [folder / f"train-{index}.tar" for index in range(len(sizes))]
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        write_token_shard(path, np.full((size, 4), index), np.zeros(size), {})
    return {path: sha256(path) for path in paths}


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_token_shard_is_left_out_and_counted(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = three_shards(tmp_path)
    assert whole_shards(digests, 0.0, tmp_path / "log") == list(digests)
    first, second, last = digests
    if damage == "flipped":  # tokens that are no less likely, in a file of the same size
        content = bytearray(last.read_bytes())
        content[content.index(b"\x02\x00\x02\x00")] = 1
        last.write_bytes(content)
    elif damage == "cut":
        last.write_bytes(last.read_bytes()[:700])
    else:
        last.unlink()
    lost = 2 if damage == "flipped" else 10  # nobody can tell: as many as in the largest
    with pytest.raises(DataError, match=rf"train-2\.tar: lost with a damaged token shard; {lost} samples skipped"):
        whole_shards(digests, lost / 100 - 0.01, tmp_path / "log")
    assert whole_shards(digests, lost / 100, tmp_path / "log") == [first, second]
    assert f"{last} is missing or not what was written" in capsys.readouterr().out
    assert json.loads((tmp_path / "log").read_text().splitlines()[0])["samples"] == lost


@pytest.mark.parametrize("bad", [-1, 2**16, 2**33, 0.5, float("nan")])
def test_a_token_never_becomes_another(bad: float, tmp_path: Path) -> None:
    tokens = np.zeros((4, 3), np.float64 if isinstance(bad, float) else np.int64)
    tokens[2, 1] = bad
    for make in (
        lambda: TokenData.from_arrays(tokens, np.zeros(4)),
        lambda: write_token_shard(tmp_path / "a.tar", tokens, np.zeros(4), {}),
    ):
        with pytest.raises(DataError, match=r"token .* of image 2: expected a whole number from 0 to 65535"):
            make()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [-1, 2**31, 2**33])
def test_a_class_never_becomes_another(bad: int, tmp_path: Path) -> None:
    classes = np.array([0, bad])
    with pytest.raises(DataError, match=f"class {bad} of image 1: expected a whole number from 0 to 2147483647"):
        TokenData.from_arrays(np.zeros((2, 3)), classes)
    with pytest.raises(DataError, match="class"):
        write_token_shard(tmp_path / "a.tar", np.zeros((2, 3), np.int64), classes, {})


def test_a_negative_class_in_a_shard_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    arrays = {"000000.tokens.npy": np.zeros((4, 3), np.uint16), "000000.classes.npy": np.array([0, 1, -2, 3], np.int32)}
    with pytest.raises(DataError, match=r"odd\.tar: image 2 has class -2; classes count from 0"):
        TokenData.from_shards([put_together(tmp_path / "odd.tar", arrays)])


@pytest.mark.parametrize("block", [1, 7, 1 << 24])
def test_a_late_token_out_of_range_is_found_with_its_place(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_shards, "BLOCK", block)
    tokens = np.zeros((100, 3), np.int64)
    write_token_shard(tmp_path / "a.tar", tokens, np.zeros(100), {})
    tokens[98, 2] = 12
    write_token_shard(tmp_path / "b.tar", tokens, np.zeros(100), {})
    data = TokenData.from_shards([tmp_path / "a.tar", tmp_path / "b.tar"])
    data.check_codes(13)
    for checked in (data, TokenData.from_arrays(tokens, np.zeros(100))):
        with pytest.raises(DataError, match=r"(b\.tar|memory): image 98 has token 12, but the tokenizer has 12 codes"):
            checked.check_codes(12)
