from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tars import write_tar

from rearkit.components.noise.schedules import NoNoise
from rearkit.data.access import Access
from rearkit.data.bad_samples import BadSamples
from rearkit.data.decoding import Decoding
from rearkit.data.fetching import Retry, ShardCache
from rearkit.data.image_index import ImageIndex, ImageReader, write_index
from rearkit.errors import DataError, RecipeError
from rearkit.model import build, build_tokenizer
from rearkit.recipe.tables import Recipe, TokensTable
from rearkit.tokenization.on_the_fly import OnTheFly
from rearkit.tokenization.views import draw_view, read_at
from rearkit.training.batches import BatchSource
from rearkit.training.logs import read_log
from rearkit.training.loop import train
from rearkit.training.order import order_of
from rearkit.training.prefetch import Feed

CPU = torch.device("cpu")
SIZES = (7, 5, 9, 3)  # images of each shard
TOTAL, BATCH = sum(SIZES), 4


def png(number: int) -> bytes:
    """An image that tells its number by its colour, and left from right."""
    pixels = np.full((8, 8, 3), number * 10, np.uint8)
    pixels[:, 4:, 0] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, int]:
    number = 0
    for shard, size in enumerate(SIZES):
        members = []
        for _ in range(size):
            members += [(f"{number:04d}.png", png(number)), (f"{number:04d}.cls", str(number % 10).encode())]
            number += 1
        write_tar(tmp_path / f"{shard}.tar", members)
    return {str(tmp_path / f"{shard}.tar"): size for shard, size in enumerate(SIZES)}


@pytest.fixture
def make(shards: dict[str, int], tiny: Callable[..., Recipe], tmp_path: Path) -> Callable[..., OnTheFly]:
    def build_with(max_bad_share: float = 0.0, remote: bool = False, **table: Any) -> OnTheFly:
        recipe = tiny(tokens={"on_the_fly": True, "shuffle_shards": 2, **table})
        names = {f"pipe:cat {name}" if remote else name: size for name, size in shards.items()}
        retry, bad = Retry(1), BadSamples(max_bad_share, TOTAL)
        counts = write_index(tmp_path / "index.npy", names, 10, BadSamples(0, TOTAL), Access(retry))
        index = ImageIndex.open(tmp_path / "index.npy", counts)
        how = read_at(recipe.tokens.augment, Decoding(8))
        reader = ImageReader(index, ShardCache(tmp_path / "cache", 6, retry), how)
        return OnTheFly(reader, build_tokenizer(recipe), recipe.tokens, 0, bad)

    return build_with


def source(data: OnTheFly, seed: int = 0, batch: int = BATCH) -> BatchSource:
    return BatchSource(data, order_of(data, seed), NoNoise(), 12, 10, 0.0, 100, batch, seed)


def numbers(images: torch.Tensor) -> list[int]:
    """The numbers that images tell by their colour."""
    return (images[:, 1, 0, 0] // 10).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_shows_every_image_once_across_ranks_and_workers_also_after_a_resume_on_others(
    workers: int, make: Callable[..., OnTheFly]
) -> None:
    data = make(augment="random-crop")
    seen: list[int] = []

    def run(steps: range, world: int) -> None:
        feeds = [Feed(source(data), steps, rank, world, 60, workers) for rank in range(world)]
        for feed in feeds:
            feed.__enter__()
        for step in steps:
            for feed in feeds:
                seen.extend(numbers(feed.next(step).samples.content))
        for feed in feeds:
            feed.__exit__(None, None, None)

    run(range(2), 1)  # 8 of 24 images; then the run is cut off, and goes on with other ranks, twice
    run(range(2, 7), 4)
    run(range(7, 12), 2)
    assert sorted(seen[:TOTAL]) == sorted(seen[TOTAL:]) == list(range(TOTAL))
    assert seen[:TOTAL] != seen[TOTAL:]


@pytest.mark.parametrize("augment", ["none", "flip", "ten-crop", "random-crop"])
def test_what_a_step_sees_depends_on_seed_and_step_alone(augment: str, make: Callable[..., OnTheFly]) -> None:
    data = make(augment=augment)
    whole = [source(data).read(step) for step in range(12)]
    halves = [[source(data).read(step, rank, 2) for rank in range(2)] for step in (5, 3)]
    for step, parts in zip((5, 3), halves, strict=True):
        assert torch.equal(torch.cat([part.content for part in parts]), whole[step].content)
        assert torch.equal(torch.cat([part.classes_B for part in parts]), whole[step].classes_B)
    assert whole[0].content.shape == (BATCH, 3, 8, 8)
    other = source(data, seed=1).read(0)
    assert not np.array_equal(other.indices, whole[0].indices)


def test_views_are_drawn_afresh_each_epoch(make: Callable[..., OnTheFly]) -> None:
    data = make(augment="flip")
    seen: dict[int, set[int]] = {number: set() for number in range(TOTAL)}
    for step in range(6 * 12):  # twelve epochs
        samples = source(data).read(step)
        for number, image in zip(numbers(samples.content), samples.content, strict=True):
            seen[number].add(int(image[0, 0, 0]) == 255)  # mirrored or not
    assert all(views == {0, 1} for views in seen.values())


def test_a_random_crop_is_any_part_of_the_image_mirrored_or_not() -> None:
    side = read_at("random-crop", Decoding(20)).size
    image = torch.arange(3 * side * side).reshape(3, side, side)
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_view(image, "random-crop", 20, generator) for _ in range(400)]
    assert all(view.shape == (3, 20, 20) for view in drawn)
    mirrored = [bool(view[0, 0, 0] > view[0, 0, 1]) for view in drawn]
    corners = {int(min(view[0, 0, 0], view[0, 0, -1])) for view in drawn}
    assert corners == {top * side + left for top in range(3) for left in range(3)}
    assert 150 < sum(mirrored) < 250


def test_tokens_are_those_of_the_frozen_tokenizer(make: Callable[..., OnTheFly]) -> None:
    data = make(batch=3)  # fewer than are asked for
    module = data.tokenizer
    module.train()
    data = OnTheFly(data._reader, data.tokenizer, data.table, 0, data.bad)
    samples = source(data, batch=8).read(0)
    tokens, classes = data.to_tokens(samples, CPU)
    assert torch.equal(tokens, data.tokenizer.encode(samples.content.float() / 255))
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
    assert tokens.dtype == classes.dtype == torch.int64
    assert torch.equal(classes, torch.tensor(numbers(samples.content)) % 10)


def damage(path: str, number: int) -> None:
    content = Path(path).read_bytes()
    broken = png(number)
    assert content.count(broken) == 1
    Path(path).write_bytes(content.replace(broken, b"x" * len(broken)))


def test_the_next_image_stands_in_for_one_that_cannot_be_read(
    make: Callable[..., OnTheFly], shards: dict[str, int]
) -> None:
    data = make(max_bad_share=0.05)
    damage(list(shards)[1], 8)  # the second image of the second shard
    batches = source(data)
    seen: list[int] = []
    for step in range(6):
        halves = [batches.read(step, rank, 2) for rank in range(2)]
        seen += [number for half in halves for number in numbers(half.content)]
        for half in halves:
            data.to_tokens(half, CPU)
    assert sorted(seen) == sorted([*range(8), 9, *range(9, TOTAL)])
    assert data.bad.reasons == {"image cannot be decoded": 1}
    assert data.bad.good == TOTAL - 1


def test_too_many_images_that_cannot_be_read_stop_training(
    make: Callable[..., OnTheFly], shards: dict[str, int]
) -> None:
    data = make(max_bad_share=0.02)
    Path(list(shards)[2]).unlink()
    with pytest.raises(DataError, match=r"2\.tar image \d: shard cannot be read: No such file .* max_bad_share"):
        for step in range(6):
            data.to_tokens(source(data).read(step), CPU)
    for shard in shards:
        Path(shard).unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"nor can 23 samples after it be read"):
        anew = ImageReader(data._reader.index, data._reader.cache, data._reader.decoding)  # which has no file open
        make_again = OnTheFly(anew, data.tokenizer, data.table, 0, data.bad)
        source(make_again).read(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_are_fetched_once_for_all_workers(
    workers: int, make: Callable[..., OnTheFly], tmp_path: Path
) -> None:
    data = make(remote=True)
    log = tmp_path / "fetched"
    index = data._reader.index
    index.shards[:] = [f"{shard.replace('pipe:', f'pipe:echo x >> {log}; ')}" for shard in index.shards]
    seen: list[int] = []
    with Feed(source(data), range(12), 0, 1, 60, workers) as feed:
        for step in range(12):
            seen += numbers(feed.next(step).samples.content)
    assert sorted(seen) == sorted([*range(TOTAL)] * 2)
    assert log.read_text().count("x") == len(SIZES)


def test_training_tokenizes_as_it_goes_and_leaves_the_tokenizer_as_it_was(
    make: Callable[..., OnTheFly], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    data = make(augment="flip")
    recipe = tiny(train={"steps": 9, "log_every": 1, "global_batch": 8})
    model = build(recipe, data.tokenizer)
    before = {name: value.clone() for name, value in data.tokenizer.state_dict().items()}
    train(model, data, folder=tmp_path / "run")
    after = data.tokenizer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    assert len(losses) == 9 and losses[-1] < losses[0]
    again = build(recipe, data.tokenizer)
    train(again, data, folder=tmp_path / "again")
    assert [line["loss"] for line in read_log(tmp_path / "again")] == losses


def test_settings_that_exclude_each_other_are_told(tiny: Callable[..., Recipe]) -> None:
    assert TokensTable(on_the_fly=True, augment="random-crop").shuffle_shards == 16
    with pytest.raises(RecipeError, match="needs on_the_fly = true"):
        tiny(tokens={"augment": "random-crop"})
    with pytest.raises(RecipeError, match="no use for pretokenized"):
        tiny(tokens={"on_the_fly": True, "pretokenized": "tokens"})
