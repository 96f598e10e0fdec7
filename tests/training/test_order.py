from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit.training.order import EpochOrder, WindowOrder

sizes = st.integers(1, 60)
batches = st.integers(1, 90)  # also larger than the data: then a batch spans epochs
seeds = st.integers(0, 2**31)


def stream(order: EpochOrder, global_batch: int, count: int) -> np.ndarray:
    steps = -(-count // global_batch)
    return np.concatenate([order.batch(step, global_batch) for step in range(steps)])[:count]


@given(sizes, batches, seeds)
def test_every_epoch_sees_every_sample_exactly_once(size: int, batch: int, seed: int) -> None:
    seen = stream(EpochOrder(size, seed), batch, 3 * size)
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(sizes, batches, batches, seeds)
def test_the_order_does_not_depend_on_how_it_is_batched(size: int, first: int, second: int, seed: int) -> None:
    one, other = stream(EpochOrder(size, seed), first, 3 * size), stream(EpochOrder(size, seed), second, 3 * size)
    assert np.array_equal(one, other)


@given(sizes, batches, seeds, st.integers(0, 20), st.lists(st.integers(0, 20), max_size=5))
def test_a_resumed_order_is_the_uninterrupted_one(
    size: int, batch: int, seed: int, start: int, detours: list[int]
) -> None:
    uninterrupted = EpochOrder(size, seed)
    whole = [uninterrupted.batch(step, batch) for step in range(start + 5)]
    resumed = EpochOrder(size, seed)
    for step in detours:  # what was asked for before does not matter
        resumed.batch(step, batch)
    for step in range(start, start + 5):
        assert np.array_equal(resumed.batch(step, batch), whole[step])


@given(sizes, batches, seeds, st.integers(0, 10**6))
def test_a_batch_has_its_size_and_holds_indices_of_samples(size: int, batch: int, seed: int, step: int) -> None:
    indices = EpochOrder(size, seed).batch(step, batch)
    assert indices.shape == (batch,)
    assert indices.dtype == np.int64
    assert 0 <= indices.min() <= indices.max() < size


def test_epochs_and_seeds_differ_in_order() -> None:
    order, other = EpochOrder(100, 0), EpochOrder(100, 1)
    assert not np.array_equal(order.batch(0, 100), order.batch(1, 100))
    assert not np.array_equal(order.batch(0, 100), other.batch(0, 100))
    assert not np.array_equal(order.batch(0, 100), np.arange(100))


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        EpochOrder(0, 0)


shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)
windows = st.integers(1, 5)


def windowed(shards: list[int], window: int, seed: int) -> WindowOrder:
    return WindowOrder(np.cumsum([0, *shards]), window, seed)


@given(shard_sizes, windows, batches, seeds)
def test_windows_of_shards_see_every_sample_exactly_once_an_epoch(
    shards: list[int], window: int, batch: int, seed: int
) -> None:
    size = sum(shards)
    seen = stream(windowed(shards, window, seed), batch, 3 * size)
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(shard_sizes, windows, batches, seeds, st.lists(st.integers(0, 20), max_size=5))
def test_windows_depend_neither_on_the_batch_nor_on_what_was_asked_before(
    shards: list[int], window: int, batch: int, seed: int, detours: list[int]
) -> None:
    order, size = windowed(shards, window, seed), sum(shards)
    whole = stream(windowed(shards, window, seed), 7, 3 * size)
    for step in detours:
        order.batch(step, batch)
    assert np.array_equal(stream(order, batch, 3 * size), whole)


@given(st.integers(2, 12), windows, seeds)
def test_no_more_shards_than_a_windows_are_read_at_a_time(count: int, window: int, seed: int) -> None:
    shard_of = stream(windowed([5] * count, window, seed), 4, 5 * count) // 5
    for start in range(0, 5 * count, 5 * window):
        assert len(set(shard_of[start : start + 5 * window])) == min(window, count - start // 5)


def test_windows_mix_their_shards_and_differ_from_epoch_to_epoch() -> None:
    order = windowed([50] * 8, 4, 0)
    first, second = order.batch(0, 400), order.batch(1, 400)
    assert not np.array_equal(first, second)
    assert set(first[:200] // 50) != set(second[:200] // 50)  # other shards are together
    assert len(set(first[:20] // 50)) == 4
