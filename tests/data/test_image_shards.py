from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tars import write_tar

from rearkit.contracts import ImageSample
from rearkit.data.bad_samples import PATIENCE, BadSamples
from rearkit.data.decoding import center_crop
from rearkit.data.image_shards import (
    Access,
    find_samples,
    read_headers,
    read_images,
    write_shards,
)
from rearkit.data.streams import ReadImage
from rearkit.errors import DataError

LOST = "lost with a damaged, truncated or empty shard"
Members = list[tuple[str, bytes]]


def pixels(value: int, side: int = 6) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def encoded(value: int, form: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(value)).save(buffer, format=form)
    return buffer.getvalue()


def sample(index: int, label: bytes | None = None, image: bytes | None = None) -> Members:
    return [
        (f"{index:04d}.cls", str(index % 3).encode() if label is None else label),
        (f"{index:04d}.png", encoded(index) if image is None else image),
    ]


def good(*indices: int) -> Members:
    return [member for index in indices for member in sample(index)]


def read(
    paths: Iterable[Path], expected: dict[str, int] | None = None, max_share: float = 1.0, log: Path | None = None
) -> tuple[list[ReadImage], BadSamples]:
    bad = BadSamples(max_share, sum((expected or {}).values()), log)
    return list(read_images({str(path): (expected or {}).get(str(path), 0) for path in paths}, 6, 3, bad)), bad


def test_samples_come_in_order_with_their_labels_and_pixels(tmp_path: Path) -> None:
    paths = [write_tar(tmp_path / "0.tar", good(0, 1, 2)), write_tar(tmp_path / "1.tar", good(3, 4))]
    images, bad = read(paths)
    assert [image.key for image in images] == ["0000", "0001", "0002", "0003", "0004"]
    assert [image.label for image in images] == [0, 1, 2, 0, 1]
    for index, image in enumerate(images):
        assert torch.equal(image.image, torch.full((3, 6, 6), index, dtype=torch.uint8))
    assert (bad.count, bad.good) == (0, 5)


BROKEN: dict[str, tuple[Members, str]] = {
    "an image that cannot be decoded": (sample(9, image=b"not an image"), "image cannot be decoded"),
    "an image cut off": (sample(9, image=encoded(9)[:-30]), "image is cut off"),
    "an empty image": (sample(9, image=b""), "image cannot be decoded"),
    "no label": (sample(9)[1:], "no label in the sample"),
    "no image": (sample(9)[:1], "no image in the sample"),
    "a label in words": (sample(9, label=b"tench"), "label is not a whole number"),
    "an empty label": (sample(9, label=b""), "label is not a whole number"),
    "a label of other bytes": (sample(9, label=b"\xff\xfe"), "label is not a whole number"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_sample_is_skipped_counted_and_logged_with_its_reason(what: str, tmp_path: Path) -> None:
    members, reason = BROKEN[what]
    path = write_tar(tmp_path / "shard.tar", [*good(0, 1), *members, *good(2)])
    log = tmp_path / "new" / "skipped.jsonl"
    images, bad = read([path], log=log)
    assert [image.key for image in images] == ["0000", "0001", "0002"]
    assert bad.reasons == Counter({reason: 1})
    assert bad.good == 3
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        {"where": f"{path} 0009", "reason": reason, "samples": 1}
    ]


@pytest.mark.parametrize("what", BROKEN)
def test_a_bad_sample_stops_the_run_where_none_may_be_skipped(what: str, tmp_path: Path) -> None:
    members, reason = BROKEN[what]
    path = write_tar(tmp_path / "shard.tar", [*good(0), *members])
    with pytest.raises(DataError, match=rf"shard\.tar 0009: {reason}; 1 samples skipped .* max_bad_share") as caught:
        read([path], max_share=0, log=tmp_path / "skipped.jsonl")
    assert "skipped.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"3", "label 3 out of range 0 to 2"),
        (b"-1", "label -1 out of range 0 to 2"),
        (b"1.7", "label 1.7 is not a whole number"),
        (b"1e30", "label 1e30 is not a whole number"),
    ],
)
def test_a_label_that_is_no_class_stops_the_run_however_much_may_be_skipped(
    label: bytes, message: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "shard.tar", [*good(0, 1), *sample(9, label=label)])
    with pytest.raises(DataError, match=rf"shard\.tar 0009: {message}"):
        read([path], max_share=1)
    with pytest.raises(DataError, match=rf"shard\.tar 0009: {message}"):
        list(find_samples(str(path), 3, 3, BadSamples(1, 3), Access()))


@given(st.integers(1, 4000))
def test_samples_lost_with_a_truncated_shard_are_counted_exactly(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = write_tar(tmp_path_factory.mktemp("shard") / "shard.tar", good(0, 1, 2, 3))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        end = max(member.offset_data + member.size for member in archive)
    path.write_bytes(whole[: max(0, end - cut)])
    images, bad = read([path], {str(path): 4})
    assert len(images) + bad.count == 4
    assert bad.count >= 1
    for index, image in enumerate(images):
        assert torch.equal(image.image, torch.full((3, 6, 6), index, dtype=torch.uint8))


@pytest.mark.parametrize("content", [b"", b"not a tar" * 200, bytes(10240)], ids=["empty", "nonsense", "zeros"])
@pytest.mark.parametrize("expected", [0, 7])
def test_a_shard_without_samples_counts_as_lost(content: bytes, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(content)
    images, bad = read([path, write_tar(tmp_path / "good.tar", good(1))], {str(path): expected} if expected else None)
    assert [image.key for image in images] == ["0001"]
    assert bad.reasons == Counter({LOST: expected or 1})


def test_a_missing_shard_counts_as_lost(tmp_path: Path) -> None:
    images, bad = read([tmp_path / "gone.tar"])
    assert images == []
    assert bad.reasons == Counter({LOST: 1})


def test_every_kind_of_damage_is_counted_by_its_reason_in_one_run(tmp_path: Path) -> None:
    members = [m for index, (broken, _) in enumerate(BROKEN.values()) for m in renamed(broken, 100 + index)]
    path = write_tar(tmp_path / "shard.tar", [*good(0), *members, *good(1)])
    images, bad = read([path])
    assert [image.key for image in images] == ["0000", "0001"]
    assert bad.reasons == Counter(reason for _, reason in BROKEN.values())


def renamed(members: Members, index: int) -> Members:
    return [(f"{index:04d}.{name.partition('.')[2]}", content) for name, content in members]


@given(
    expected=st.integers(0, 5000),
    share=st.floats(0, 1),
    skips=st.lists(st.integers(0, 60), max_size=12),
    good_between=st.integers(0, 200),
)
def test_a_run_stops_exactly_where_the_limit_is_passed(
    expected: int, share: float, skips: list[int], good_between: int
) -> None:
    bad = BadSamples(share, expected)
    count = 0
    for samples in skips:
        count += samples
        limit = share * max(expected, bad.good + count, PATIENCE)
        if samples and count > limit:
            with pytest.raises(DataError, match="more than the"):
                bad.skip("here", "reason", samples)
            return
        bad.skip("here", "reason", samples)
        bad.good += good_between
    assert bad.count == count


def test_the_message_of_a_stop_counts_every_reason() -> None:
    bad = BadSamples(0.02, 100)
    bad.skip("a", "first")
    bad.skip("b", "second")
    with pytest.raises(DataError, match=r"c: first; 3 samples skipped \(2 × first, 1 × second\), more than the 2\.0%"):
        bad.skip("c", "first")


def test_one_early_bad_sample_does_not_stop_a_run_of_unknown_length(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", [*renamed(BROKEN["no label"][0], 0), *good(1)])
    images, bad = read([path], max_share=1 / PATIENCE)
    assert (len(images), bad.count) == (1, 1)


def test_a_skip_is_logged_once_however_often_the_shard_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "shard.tar", [*good(0), *BROKEN["no label"][0]])
    for _ in range(3):
        read([path], log=tmp_path / "skipped.jsonl")
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 1


def test_a_shuffled_reading_is_a_permutation_that_the_generator_decides(tmp_path: Path) -> None:
    paths = [str(write_tar(tmp_path / f"{i}.tar", good(*range(10 * i, 10 * i + 10)))) for i in range(4)]

    def keys(seed: int) -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        return [image.key for image in read_images(dict.fromkeys(paths, 0), 6, 3, BadSamples(0, 40), shuffle=generator)]

    assert keys(0) == keys(0)
    assert keys(0) != keys(1)
    assert sorted(keys(0)) == [f"{i:04d}" for i in range(40)] != keys(0)


# Writing


def samples(count: int) -> Iterable[ImageSample]:
    return (ImageSample(f"{index:04d}", pixels(index), index % 3) for index in range(count))


@given(st.integers(1, 12), st.integers(1, 8))
def test_written_shards_hold_every_image_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, count: int, shard_size: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    listing = dict(write_shards(samples(count), folder, "train", shard_size))
    assert [Path(path).name for path in listing] == [f"train-{i:06d}.tar" for i in range(-(-count // shard_size))]
    assert all(size == shard_size for size in list(listing.values())[:-1])
    assert {path: read_headers(path).samples for path in listing} == listing
    assert all(read_headers(path).whole for path in listing)
    images, _ = read([Path(path) for path in listing], listing, max_share=0)
    assert [image.key for image in images] == [f"{index:04d}" for index in range(count)]
    for index, image in enumerate(images):
        assert (image.label, int(image.image.float().mean())) == (index % 3, index)


def test_shards_that_are_there_are_kept_and_missing_ones_written(tmp_path: Path) -> None:
    paths = [Path(path) for path, _ in write_shards(samples(9), tmp_path, "train", 3)]
    contents = [path.read_bytes() for path in paths]
    before = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()
    listing = list(write_shards(samples(9), tmp_path, "train", 3))
    assert [count for _, count in listing] == [3, 3, 3]
    assert [path.read_bytes() for path in paths] == contents
    assert [path.stat().st_mtime_ns for path in paths[::2]] == before[::2]


def test_an_image_file_goes_in_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "a.JPEG").write_bytes(encoded(200, "jpeg"))
    ((path, _),) = write_shards([ImageSample("a", tmp_path / "a.JPEG", 1)], tmp_path, "train", 3)
    with tarfile.open(path) as archive:
        content = archive.extractfile("a.jpeg")
        assert content is not None
        assert content.read() == (tmp_path / "a.JPEG").read_bytes()
    (image,), _ = read([Path(path)])
    assert image.label == 1


def test_headers_tell_how_many_samples_and_whether_the_shard_is_whole(tmp_path: Path) -> None:
    def told(shard: Path | str) -> tuple[int | None, bool]:
        headers = read_headers(str(shard))
        return headers.samples, headers.whole

    path = write_tar(tmp_path / "shard.tar", good(0, 1, 2))
    assert told(path) == (3, True)
    content = path.read_bytes()
    path.write_bytes(content[: 512 * 5])
    count, whole = told(path)
    assert count is not None and count < 3
    assert not whole
    path.write_bytes(b"")
    assert told(path) == (0, False)
    assert told(tmp_path / "gone.tar") == (None, True)  # not a local file: nobody knows
    assert told("https://example.org/shard.tar") == (None, True)


def test_headers_tell_other_content_from_a_copy(tmp_path: Path) -> None:
    first, same, other = (tmp_path / f"{name}.tar" for name in ("first", "same", "other"))
    write_tar(first, good(0, 1, 2))
    same.write_bytes(first.read_bytes())
    write_tar(other, [*good(0, 1), *sample(2, image=encoded(2) + b"x")])
    assert read_headers(str(first)) == read_headers(str(same)) != read_headers(str(other))


# Cropping


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24))
def test_any_image_becomes_a_square_of_the_size(width: int, height: int, size: int) -> None:
    image = Image.new("RGB", (width, height), (10, 20, 30))
    cropped = center_crop(image, size)
    assert cropped.shape == (3, size, size)
    assert cropped.dtype == torch.uint8
    assert cropped.flatten(1).float().mean(1).tolist() == [10, 20, 30]


def test_the_middle_is_what_is_kept() -> None:
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    assert (center_crop(Image.fromarray(wide), 8) == 255).all()


def test_an_image_of_the_size_is_kept_pixel_by_pixel() -> None:
    content = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    assert np.array_equal(center_crop(Image.fromarray(content), 8).permute(1, 2, 0).numpy(), content)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
@pytest.mark.parametrize("form", ["png", "tiff"])
def test_any_colour_mode_becomes_rgb(mode: str, form: str, tmp_path: Path) -> None:
    if (mode, form) == ("CMYK", "png"):
        return
    buffer = io.BytesIO()
    Image.fromarray(pixels(255)).convert(mode).save(buffer, format=form)
    path = write_tar(tmp_path / "shard.tar", sample(0, image=buffer.getvalue()))
    (image,), _ = read([path])
    assert (image.image == 255).all()


def test_a_label_is_no_number_as_python_alone_writes_it(tmp_path: Path) -> None:
    bad = BadSamples(1, 3)
    path = write_tar(tmp_path / "shard.tar", [*good(0, 1), *sample(9, label=b"0_2")])
    assert len(list(find_samples(str(path), 3, 3, bad, Access()))) == 2
    assert bad.reasons == {"label is not a whole number": 1}
