from __future__ import annotations

import gzip
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from rearkit.data.access import Access
from rearkit.data.decoding import Decoding
from rearkit.data.fetching import Retry
from rearkit.data.image_sets import ImageBatches, ImageSet, Split
from rearkit.data.pixels import psnr, to_float, to_uint8
from rearkit.data.streams import ReadImage
from rearkit.errors import DataError
from rearkit.recipe.tables import Recipe
from rearkit.stages import data as stage
from rearkit.stages.data import load_images
from rearkit.stages.run_folder import RunFolder

SIDE = 4
Opened = tuple[Recipe, RunFolder]


def write_shard(path: Path, indices: range, image: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for index in indices:
            buffer = io.BytesIO()
            Image.fromarray(np.full((SIDE, SIDE, 3), index, np.uint8)).save(buffer, format="png")
            writer.write({"__key__": f"{index:03d}", "png": image or buffer.getvalue(), "cls": index % 5})


@pytest.fixture
def opened(tiny: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Opened]:
    """A run folder whose data stage has run on shards of some sizes."""

    def open_run(*sizes: int, image: bytes | None = None, max_bad_share: float = 0.0) -> Opened:
        start = 0
        for number, size in enumerate(sizes):
            write_shard(tmp_path / "shards" / f"{number}.tar", range(start, start + size), image)
            start += size
        source = {"name": "shards", "train": str(tmp_path / "shards"), "num_classes": 5}
        recipe = tiny(data={"source": source, "max_bad_share": max_bad_share})
        folder = RunFolder(tmp_path / "run")
        folder.stage("data").mkdir(parents=True)
        stage.run(recipe, folder)
        return recipe, folder

    return open_run


def split_of(opened: Opened, name: str = "train") -> Split:
    return stage.open_split(*opened, name, SIDE, "tokens")


def batches(opened: Opened, batch: int, count: int) -> list[list[int]]:
    """The numbers of the images in the first batches."""
    return numbers_of(split_of(opened).batches(batch), batch, count)


def numbers_of(stream: ImageBatches, batch: int, count: int) -> list[list[int]]:
    found = []
    for images, labels in itertools.islice(stream, count):
        assert images.shape == (batch, 3, SIDE, SIDE)
        assert images.dtype == torch.float32
        numbers = (images[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(labels, numbers % 5)
        found.append(numbers.tolist())
    return found


@pytest.mark.parametrize("batch", [1, 3, 7, 10])
def test_every_epoch_sees_every_image_once(batch: int, opened: Callable[..., Opened]) -> None:
    seen = list(itertools.chain.from_iterable(batches(opened(4, 6), batch, 30 // batch + 1)))
    for epoch in range(2):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_a_batch_larger_than_the_data_takes_several_epochs(opened: Callable[..., Opened]) -> None:
    (batch,) = batches(opened(3), 7, 1)
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("broken", [False, True])
def test_a_resumed_stream_is_the_uninterrupted_one(broken: bool, opened: Callable[..., Opened]) -> None:
    run = opened(4, 6, max_bad_share=0.5)
    if broken:  # in the same place of the stream each time
        write_shard(Path(run[0].data.source.settings.train) / "0.tar", range(4), b"broken")
    whole = split_of(run).batches(4)
    places, seen = [whole.place], []
    for _ in range(8):
        seen += numbers_of(whole, 4, 1)
        places.append(whole.place)
    for number, place in enumerate(places):
        assert numbers_of(split_of(run).batches(4, place), 4, 8 - number) == seen[number:]
    if not broken:  # a count of all images is a place too, though one that takes longer
        assert numbers_of(split_of(run).batches(4, (0, 5 * 4)), 4, 3) == seen[5:]


def test_a_resumed_stream_reads_no_epoch_again(opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(opened(4, 6))
    stream = split.batches(4)
    for _ in range(8):
        next(stream)
    assert stream.place == (3, 2)
    read: list[int] = []
    monkeypatch.setattr(Split, "read", lambda self, epoch, bad: read.append(epoch) or iter(()))
    with pytest.raises(DataError):
        next(split.batches(4, stream.place))
    assert read == [3]


def test_the_stream_depends_on_the_seed(opened: Callable[..., Opened], tiny: Callable[..., Recipe]) -> None:
    recipe, folder = opened(10)
    source = {"name": "shards", "train": recipe.data.source.settings.train, "num_classes": 5}
    other = tiny(data={"source": source}, seed=1)
    assert batches((recipe, folder), 10, 1) == batches((recipe, folder), 10, 1) != batches((other, folder), 10, 1)


@pytest.mark.parametrize("max_bad_share", [0.5, 1.0])
def test_a_stream_without_a_usable_image_ends_in_an_error(max_bad_share: float, opened: Callable[..., Opened]) -> None:
    with pytest.raises(DataError, match="no training images that can be used"):
        batches(opened(3, image=b"broken", max_bad_share=max_bad_share), 2, 1)


def test_a_split_is_read_in_the_order_of_its_shards_and_a_part_of_it_from_everywhere(
    opened: Callable[..., Opened],
) -> None:
    run = opened(4, 6)

    def numbers(limit: int | None) -> list[int]:
        images = split_of(run).all(limit)
        assert images.images.dtype == torch.uint8
        assert torch.equal(images.labels, images.images[:, 0, 0, 0] % 5)
        return images.images[:, 0, 0, 0].tolist()

    assert numbers(None) == numbers(10) == numbers(50) == list(range(10))
    some = numbers(5)
    assert some == numbers(5) == sorted(some)
    # One of every two.
    assert [number // 2 for number in some] == [0, 1, 2, 3, 4]
    assert split_of(run).part(5).count() == 5 and split_of(run).part(50).count() == 10
    assert len(split_of(run, "held-out").all()) == len(split_of(run, "held-out").all(5)) == 0


def test_a_part_of_shards_that_are_sorted_by_class_has_all_classes(tmp_path: Path) -> None:
    shards: dict[str, int | None] = {}
    for label in range(8):
        path = tmp_path / f"{label}.tar"
        write_shard(path, range(5 * label, 5 * label + 5))
        shards[str(path)] = 5
    split = Split(name="train", shards=shards, num_classes=5, decoding=Decoding(SIDE))
    found = split.all(8).images[:, 0, 0, 0] // 5
    assert found.tolist() == list(range(8))


def test_what_is_damaged_in_a_part_is_counted_and_no_more(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", range(10))
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: len(whole) // 2])
    split = Split(
        name="train", shards={str(tmp_path / "0.tar"): 10}, num_classes=5, decoding=Decoding(SIDE), max_bad_share=1
    )
    part = split.part(4)
    bad = part.budget()
    assert bad.expected == 4
    assert len(list(part.read(bad=bad))) + bad.count == 4 and bad.count in (1, 2)


def test_of_remote_shards_few_are_fetched_for_a_part_and_none_to_count_it_again(tmp_path: Path) -> None:
    shards = {}
    for label in range(8):
        write_shard(tmp_path / f"{label}.tar", range(5 * label, 5 * label + 5))
        shards[f"pipe:echo {label} >> {tmp_path}/log; cat {tmp_path}/{label}.tar"] = None
    log = tmp_path / "log"

    def fetched() -> list[int]:
        lines = [int(line) for line in log.read_text().split()]
        log.unlink()
        return lines

    split = Split(
        name="train", shards=shards, num_classes=5, decoding=Decoding(SIDE), access=Access(Retry(1, 0), counts={})
    )
    part = split.part(10)
    assert part.count() == 10 and fetched() == [0, 4]
    assert [image.label for image in part.read()] == [0, 1, 2, 3, 4] * 2 and fetched() == [0, 4]
    assert len(list(split.part(10).read())) == 10 and fetched() == [0, 4]
    assert len(list(split.read())) == 40 and fetched() == list(range(8))
    # Reading has counted them.
    assert split.count() == 40 and not log.exists()
    assert split.part(40) is split


def test_a_run_without_a_data_stage_is_told_to_run_it(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards\.json; run: python -m rearkit data RECIPE"):
        split_of((tiny(), RunFolder(tmp_path)))


def test_images_load_without_a_run_folder_from_shards_and_from_a_dataset(
    opened: Callable[..., Opened], tiny: Callable[..., Recipe]
) -> None:
    recipe, _ = opened(3, 2)
    shards = load_images(recipe)
    assert shards.images.shape == (5, 3, 8, 8)  # the size of the recipe's tokenizer
    assert shards.labels.tolist() == [0, 1, 2, 3, 4]
    digits = load_images(
        tiny(data={"source": {"name": "mnist-5k", "train_per_class": 2, "held_out_per_class": 1}}), "held-out"
    )
    assert digits.images.shape == (10, 3, 8, 8)
    assert digits.labels.tolist() == list(range(10))


def test_floats_and_bytes_are_each_others_inverse() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values).min() == 0
    assert to_float(values).max() == 1
    assert to_uint8(torch.tensor([-0.5, 1.5, 0.5])).tolist() == [0, 255, 128]


@given(st.floats(0.01, 0.5), st.integers(1, 4))
def test_psnr_follows_its_definition(error: float, count: int) -> None:
    reference = torch.full((count, 3, 2, 2), 0.5)
    assert psnr(reference + error, reference).tolist() == pytest.approx([-20 * np.log10(error)] * count, rel=1e-4)


def test_psnr_is_of_each_image_and_bounded_for_equal_ones() -> None:
    images = torch.rand(2, 3, 4, 4)
    other = images.clone()
    other[1] += 0.1
    assert psnr(other, images).tolist() == pytest.approx([100, 20], abs=1e-3)


def test_an_image_set_takes_arrays_as_people_have_them() -> None:
    images = np.random.default_rng(0).integers(256, size=(3, 4, 4, 3), dtype=np.uint8)
    held = ImageSet.from_arrays(images, np.array([2, 0, 1], dtype=np.int32))
    assert len(held) == 3
    assert np.array_equal(held.images.permute(0, 2, 3, 1).numpy(), images)
    assert held.labels.dtype == torch.int64


def test_images_that_were_read_become_a_set() -> None:
    read = ReadImage(torch.full((3, 2, 2), 255, dtype=torch.uint8), 3, "a")
    held = ImageSet.of([read, read], 2)
    assert held.images.shape == (2, 3, 2, 2)
    assert (held.images == 255).all()
    assert held.labels.tolist() == [3, 3]
    assert ImageSet.of([], 2).images.shape == (0, 3, 2, 2)


# Stretches


@pytest.mark.parametrize("length", [1, 4, 5, 100])
@pytest.mark.parametrize("limit", [None, 7])
def test_stretches_are_the_split_in_order(limit: int | None, length: int, opened: Callable[..., Opened]) -> None:
    whole = split_of(opened(4, 1, 6, 3)).part(limit)
    keys = [image.key for image in whole.read()]
    stretches = whole.stretches(length)
    assert [[image.key for image in stretch.read()] for stretch in stretches] == [
        keys[start : start + length] for start in range(0, len(keys), length)
    ]


def test_there_are_no_stretches_of_nothing(opened: Callable[..., Opened]) -> None:
    assert split_of(opened(4), "held-out").stretches(3) == []


@pytest.mark.parametrize("packed", [False, True])
def test_shards_that_are_fetched_or_unpacked_stay_whole(packed: bool, tmp_path: Path) -> None:
    shards = {}
    for number in range(3):
        path = tmp_path / f"{number}.tar"
        write_shard(path, range(10 * number, 10 * number + 5))
        if packed:
            path.write_bytes(gzip.compress(path.read_bytes()))
        shards[str(path) if packed else f"pipe:echo >> {tmp_path}/log; cat {path}"] = 5
    split = Split(name="train", shards=shards, num_classes=5, decoding=Decoding(SIDE))
    stretches = split.stretches(7)
    assert [len(list(stretch.read())) for stretch in stretches] == [10, 5]
    assert packed or len((tmp_path / "log").read_text().split("\n")) == 3 + 1


def test_damage_of_a_shard_is_counted_once_however_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_shard(path, range(10))
    path.write_bytes(path.read_bytes()[:-11000])
    split = Split(name="train", shards={str(path): 10}, num_classes=5, decoding=Decoding(SIDE), max_bad_share=1.0)
    whole = split.budget()
    keys = [image.key for image in split.read(bad=whole)]
    for length in (2, 3, 10):
        bad = split.budget()
        assert [image.key for stretch in split.stretches(length) for image in stretch.read(bad=bad)] == keys
        assert bad.reasons == whole.reasons and whole.count


# Sets in memory


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(4, 3, 8, 8), torch.zeros(4).long(), r"uint8, .* found float32 .* by \(images \* 255\)\.round\(\)"),
        (torch.zeros(4, 8, 8, 3).byte(), torch.zeros(4).long(), r"\(4, 8, 8, 3\); .* last by images\.permute"),
        (np.zeros((4, 3, 8, 8), np.uint8), torch.zeros(4).long(), "found ndarray"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(3).long(), r"4 int64, one for each image; .* shape \(3,\)"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4), r"found torch\.float32 .* torch\.as_tensor\(labels, dtype="),
        (torch.zeros(4, 3, 8, 8).byte(), [0, 1, 2, 3], r"found \[0, 1, 2, 3\]"),
    ],
)
def test_a_set_of_something_else_says_how_to_convert_it(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(images, labels)
