from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rearkit.components.noise.schedules import FixedNoise, LinearNoise, NoNoise
from rearkit.data.token_shards import TokenData
from rearkit.recipe.train_table import TrainTable
from rearkit.training.batches import Batch, BatchSource
from rearkit.training.deepspeed_config import batch_layout
from rearkit.training.order import EpochOrder

CODES, CLASSES, N = 50, 7, 5


def tokens_of(index: int) -> np.ndarray:
    """Tokens that tell which sample they are of."""
    return np.arange(index, index + N) % CODES


def source(size: int = 20, **changes: object) -> BatchSource:
    tokens = np.stack([tokens_of(index) for index in range(size)])
    values: dict[str, object] = {
        "data": TokenData.from_arrays(tokens, np.arange(size) % CLASSES),
        "order": EpochOrder(size, 0),
        "noise": LinearNoise(),
        "codebook_size": CODES,
        "num_classes": CLASSES,
        "label_dropout": 0.3,
        "steps": 10,
        "global_batch": 8,
        "seed": 0,
    }
    return BatchSource(**(values | changes))  # type: ignore[arg-type]


TENSORS = ("tokens_BN", "context_BN", "replaced_BN", "classes_B")


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


def joined(parts: list[Batch]) -> Batch:
    return attrs.evolve(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS})


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(0, 9), st.integers(0, 2**31))
def test_micro_batches_of_all_ranks_are_the_global_batch_in_order(
    world: int, micro: int, times: int, step: int, seed: int
) -> None:
    batches = source(global_batch=world * micro * times, seed=seed)
    shares = [list(batches.batch(step, rank, world).pieces(micro)) for rank in range(world)]
    assert [len(share) for share in shares] == [times] * world
    assert all(len(part.tokens_BN) == micro for share in shares for part in share)
    assert same(joined([part for share in shares for part in share]), batches.batch(step))


@given(st.integers(1, 64), st.integers(1, 8), st.none() | st.integers(1, 16))
def test_whatever_layout_is_accepted_partitions_the_global_batch(
    global_batch: int, world: int, micro: int | None
) -> None:
    if micro is not None and global_batch % micro:
        return  # refused by the recipe
    train = TrainTable(steps=1, global_batch=global_batch, micro_batch=micro)
    if global_batch % world or (micro is not None and global_batch // world % micro):
        with pytest.raises(Exception, match="divide"):
            batch_layout(train, world)
        return
    size, accumulation = batch_layout(train, world)
    assert size * accumulation * world == global_batch
    batches = source(global_batch=global_batch)
    parts = [part for rank in range(world) for part in batches.batch(0, rank, world).pieces(size)]
    assert len(parts) == accumulation * world
    assert same(joined(parts), batches.batch(0))


@given(st.integers(0, 9), st.integers(0, 2**31))
def test_a_batch_is_a_function_of_seed_and_step(step: int, seed: int) -> None:
    batches = source(seed=seed)
    torch.manual_seed(1)
    first = batches.batch(step)
    batches.batch((step + 1) % 10)
    torch.manual_seed(2)
    assert same(first, batches.batch(step))
    assert same(first, source(seed=seed).batch(step))
    assert not torch.equal(first.context_BN, source(seed=seed + 1, noise=FixedNoise(rate=1)).batch(step).context_BN)


@given(st.integers(0, 9))
def test_targets_and_classes_are_the_samples_own_and_only_the_context_is_noisy(step: int) -> None:
    batches = source(noise=FixedNoise(rate=0.5), label_dropout=0)
    batch = batches.batch(step)
    for row, index in enumerate(batches.order.batch(step, 8)):
        assert batch.tokens_BN[row].tolist() == tokens_of(int(index)).tolist()
        assert batch.classes_B[row] == index % CLASSES
    untouched = ~batch.replaced_BN
    assert torch.equal(batch.context_BN[untouched], batch.tokens_BN[untouched])


def test_labels_are_dropped_at_their_rate_and_become_no_label() -> None:
    batch = source(size=4000, global_batch=4000, label_dropout=0.1).batch(0)
    dropped = batch.classes_B == CLASSES
    assert dropped.double().mean().item() == pytest.approx(0.1, abs=0.02)
    assert batch.classes_B.max() == CLASSES
    assert not (source(size=4000, global_batch=4000, label_dropout=0).batch(0).classes_B == CLASSES).any()


def test_noise_follows_the_schedule_over_the_run() -> None:
    batches = source(size=2000, global_batch=2000, steps=100)
    for step in (0, 30, 60, 74):
        level = 1 - step / 75
        batch = batches.batch(step)
        assert batch.noise_level == pytest.approx(level / 2, abs=0.03)
        assert batch.replaced_BN.double().mean().item() == pytest.approx(level / 2, abs=0.03)
    assert not batches.batch(75).replaced_BN.any()
    assert not batches.batch(99).replaced_BN.any()


def test_without_noise_the_context_is_the_tokens() -> None:
    batch = source(noise=NoNoise()).batch(3)
    assert torch.equal(batch.context_BN, batch.tokens_BN)
    assert not batch.replaced_BN.any()
    assert batch.noise_level == 0


def test_samples_of_a_batch_are_noised_and_dropped_independently_of_one_another() -> None:
    batch = source(size=1, global_batch=500, noise=FixedNoise(rate=0.5), label_dropout=0.5).batch(0)
    assert len({tuple(row) for row in batch.replaced_BN.tolist()}) > 20
    replaced, dropped = batch.replaced_BN.double().mean(1), (batch.classes_B == CLASSES).double()
    assert abs(torch.corrcoef(torch.stack([replaced, dropped]))[0, 1]) < 0.15
