"""The order in which samples are seen: a function of seed and step alone, so that resuming needs no state.

Epochs follow one another without a gap; each is a permutation of all samples, so each is seen exactly once an epoch,
whatever the batch size and the number of ranks.
"""

from __future__ import annotations

import numpy as np

from rearkit.data.training_data import TrainingData
from rearkit.system.devices import derive_seed


class EpochOrder:
    """The sequence of sample indices of a run.

    Args:
        size: number of samples.
        seed: of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("there are no samples to order")
        self.size, self.seed = size, seed
        self._held = (-1, np.empty(0, np.int64))  # one value, since a thread reads ahead

    def batch(self, step: int, global_batch: int) -> np.ndarray:
        """Return the indices of a step's samples, (global_batch,) int64."""
        position, wanted = step * global_batch, global_batch
        parts: list[np.ndarray] = []
        while wanted:
            part = self._part(*divmod(position, self.size), wanted)
            parts.append(part)
            position, wanted = position + len(part), wanted - len(part)
        return np.concatenate(parts)

    def _part(self, epoch: int, offset: int, wanted: int) -> np.ndarray:
        """Return the indices from a place of an epoch on, at least one and at most so many."""
        return self._of_epoch(epoch)[offset : offset + wanted]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        held, permutation = self._held
        if epoch != held:
            permutation = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(self.size)
            self._held = (epoch, permutation)
        return permutation


class WindowOrder(EpochOrder):
    """An order that needs few shards at a time: shards are shuffled, and samples within windows of so many shards.

    Args:
        starts: (shards + 1,) the index of each shard's first sample, and after the last.
        window: shards in a window.
        seed: of the permutations.
    """

    def __init__(self, starts: np.ndarray, window: int, seed: int) -> None:
        super().__init__(int(starts[-1]), seed)
        self.starts, self.window = starts, window
        self._in_window = ((-1, -1), np.empty(0, np.int64))

    def _part(self, epoch: int, offset: int, wanted: int) -> np.ndarray:
        shards = self._shards_of_epoch(epoch)
        ends = np.cumsum(np.diff(self.starts)[shards])[self.window - 1 :: self.window]  # of the whole windows
        number = int(np.searchsorted(ends, offset, side="right"))
        start = int(ends[number - 1]) if number else 0
        return self._of_window(epoch, number, shards)[offset - start : offset - start + wanted]

    def _shards_of_epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, "shards", epoch)).permutation(len(self.starts) - 1)

    def _of_window(self, epoch: int, number: int, shards: np.ndarray) -> np.ndarray:
        held, permutation = self._in_window
        if held != (epoch, number):
            here = shards[number * self.window : (number + 1) * self.window]
            samples = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in here])
            permutation = np.random.default_rng(derive_seed(self.seed, "window", epoch, number)).permutation(samples)
            self._in_window = ((epoch, number), permutation)
        return permutation


def order_of(data: TrainingData, seed: int) -> EpochOrder:
    """Return the order in which to train on data."""
    return WindowOrder(data.starts, data.window, seed) if data.window else EpochOrder(len(data), seed)
