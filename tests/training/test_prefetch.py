from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rearkit.components.noise.schedules import NoNoise
from rearkit.data.token_shards import TokenData
from rearkit.data.token_writing import write_token_shard
from rearkit.data.training_data import shards_of
from rearkit.errors import DataError
from rearkit.model import build
from rearkit.recipe.tables import Recipe
from rearkit.training.batches import BatchSource
from rearkit.training.loop import train
from rearkit.training.order import EpochOrder
from rearkit.training.prefetch import Feed

SIZE, BATCH = 24, 6


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"train-{index}.tar" for index in range(3)]
    for index, path in enumerate(paths):
        numbers = np.arange(8) + 8 * index
        write_token_shard(path, np.repeat(numbers[:, None] % 12, 16, 1), numbers, {})
    return paths


def source(data: TokenData) -> BatchSource:
    return BatchSource(data, EpochOrder(len(data), 0), NoNoise(), 12, SIZE, 0.0, 8, BATCH, 0)


@pytest.fixture
def hang(shards: list[Path]) -> Iterator[Callable[[int], Path]]:
    """Let a shard that was opened hang when it is first read, as one on a dead file server does."""
    held: list[Path] = []

    def replace(index: int) -> Path:
        shards[index].unlink()
        os.mkfifo(shards[index])
        held.append(shards[index])
        return shards[index]

    yield replace
    for path in held:  # lets the reader go
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_come_step_by_step_from_a_thread_or_from_processes(workers: int, shards: list[Path]) -> None:
    batches = source(TokenData.from_shards(shards))
    with Feed(batches, range(1, 8), 1, 2, 60, workers) as feed:
        for step in range(1, 8):
            samples, expected = feed.next(step).samples, batches.read(step, 1, 2)
            assert np.array_equal(samples.indices, expected.indices)
            assert np.array_equal(samples.classes_B, samples.indices)
            assert samples.content[:, 0].tolist() == (samples.indices % 12).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hung_read_ends_with_the_name_of_its_shard(
    workers: int, shards: list[Path], hang: Callable[[int], Path]
) -> None:
    data = TokenData.from_shards(shards)
    hung = hang(1)
    started = time.monotonic()
    with (
        pytest.raises(DataError, match=r"no samples for step 1 in 2 s .* hangs at .*train-1\.tar"),
        Feed(source(data), range(8), 0, 1, 2, workers) as feed,
    ):
        feed.next(0)
    assert time.monotonic() - started < 30
    assert hung.exists()


def test_training_stops_at_a_hung_read(
    shards: list[Path],
    hang: Callable[[int], Path],
    tiny: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = TokenData.from_shards(shards)
    data._classes = [classes % 10 for classes in data._classes]
    hung, take = hang(1), data.take

    def look(indices: Sequence[int], *rest: Any) -> Any:  # the check before the first step passes the shard over
        return take(indices if rest else [i for i in indices if not 8 <= i < 16], *rest)

    monkeypatch.setattr(data, "take", look)
    monkeypatch.setattr(data, "check_codes", lambda codes: None)  # it reads the shard, too, when training begins
    with pytest.raises(DataError, match=rf"no samples for step 1 in 1 s .* hangs at {hung}"):
        train(build(tiny(train={"guards": {"data_timeout": 1.0}, "global_batch": 24})), data)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_reader_is_raised_where_its_samples_are_wanted(workers: int, shards: list[Path]) -> None:
    batches = source(TokenData.from_shards(shards))
    with shards[2].open("r+b") as file:
        file.truncate(1000)
    with Feed(batches, range(4), 0, 1, 60, workers) as feed, pytest.raises(DataError) as caught:
        for step in range(4):
            feed.next(step)
    assert str(caught.value).startswith(f"{shards[2]}: token shard was cut off")  # one line, without a traceback


def test_a_killed_reader_is_told(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = TokenData.from_shards(shards)
    monkeypatch.setattr(data, "take", lambda indices, reading: (reading(1), os.kill(os.getpid(), 9)))
    with (
        Feed(source(data), range(8), 0, 1, 60, workers=1) as feed,
        pytest.raises(DataError, match=r"was killed at step 1 .*train-1\.tar"),
    ):
        feed.next(0)


def test_a_feed_that_is_left_early_leaves_no_thread_behind(shards: list[Path]) -> None:
    before = threading.active_count()
    with Feed(source(TokenData.from_shards(shards)), range(1000), 0, 1, 60) as feed:
        feed.next(0)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() == before


def test_shards_are_named_by_the_samples_they_hold(shards: list[Path]) -> None:
    data = TokenData.from_shards(shards)
    assert shards_of(data, [0, 7]) == [str(shards[0])]
    assert shards_of(data, [23, 8, 9]) == [str(shards[1]), str(shards[2])]
    assert shards_of(data, []) == []
    assert shards_of(TokenData.from_arrays(np.zeros((4, 2)), np.zeros(4)), [1, 2]) == ["memory"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_readers_leave_being_stopped_to_the_process_that_trains(number: signal.Signals, shards: list[Path]) -> None:
    batches = source(TokenData.from_shards(shards))
    with Feed(batches, range(8), 0, 1, 60, workers=2) as feed:
        feed.next(0)
        readers = [child.pid for child in multiprocessing.active_children()]
        for reader in readers:  # as launchers do, which signal all processes of a rank
            os.kill(reader, number)
        for step in range(1, 8):
            assert np.array_equal(feed.next(step).samples.indices, batches.read(step).indices)
    assert len(readers) == 2
    assert not multiprocessing.active_children()


def test_a_reader_killed_while_a_step_computes_is_told(shards: list[Path]) -> None:
    batches = source(TokenData.from_shards(shards))
    with (
        pytest.raises(DataError, match="a process that reads samples was killed at step 1"),
        Feed(batches, range(8), 0, 1, 60, workers=1) as feed,
    ):
        feed.next(0)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(30)  # cut short by torch, which learns of it by a signal


def test_frozen_readers_meet_the_time_limit(shards: list[Path]) -> None:
    started = time.monotonic()
    with (
        pytest.raises(DataError, match=r"no samples for step \d+ in 1 s"),
        Feed(source(TokenData.from_shards(shards)), range(99), 0, 1, 1, workers=1) as feed,
    ):
        feed.next(0)
        time.sleep(0.5)  # until the reader is ahead: what it has read then needs it once more to be taken over
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGSTOP)
        for step in range(1, 99):
            feed.next(step)
    assert time.monotonic() - started < 10
    assert not multiprocessing.active_children()
