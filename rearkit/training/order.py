"""The order in which samples are seen. It depends on the seed and the step alone, so that resuming needs no state.

An epoch is a permutation of all samples, so each sample is seen exactly once per epoch, for any batch size and number
of ranks. Epochs follow one another without a gap: a batch may hold the end of one and the start of the next.
"""

from __future__ import annotations

import numpy as np

from rearkit.data.training_data import TrainingData
from rearkit.system.devices import derive_seed


class EpochOrder:
    """The sequence of sample indices of a run.

    Args:
        size: number of samples.
        seed: seed of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("there are no samples to order")
        self.size, self.seed = size, seed
        # Epoch and permutation in one tuple, which is replaced at once, since a thread may read ahead with it.
        self._held = (-1, np.empty(0, np.int64))

    def batch(self, step: int, global_batch: int) -> np.ndarray:
        """Return the indices of a step's samples, (global_batch,) int64."""
        position = step * global_batch
        wanted = global_batch
        parts: list[np.ndarray] = []
        # Takes several rounds where a batch crosses the end of an epoch or of a window.
        while wanted:
            part = self._part(*divmod(position, self.size), wanted)
            parts.append(part)
            position = position + len(part)
            wanted = wanted - len(part)
        return np.concatenate(parts)

    def _part(self, epoch: int, offset: int, wanted: int) -> np.ndarray:
        """Return indices from a position in an epoch on, at least one and at most ``wanted``."""
        return self._of_epoch(epoch)[offset : offset + wanted]

    def _of_epoch(self, epoch: int) -> np.ndarray:
        held, permutation = self._held
        if epoch != held:
            permutation = np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(self.size)
            self._held = (epoch, permutation)
        return permutation


class WindowOrder(EpochOrder):
    """An order that reads from few shards at a time: shards are shuffled, then the samples within windows of shards.

    Args:
        starts: (shards + 1,) the index of each shard's first sample, then the total number of samples.
        window: shards in a window.
        seed: seed of the permutations.
    """

    def __init__(self, starts: np.ndarray, window: int, seed: int) -> None:
        super().__init__(int(starts[-1]), seed)
        self.starts, self.window = starts, window
        self._in_window = ((-1, -1), np.empty(0, np.int64))

    def _part(self, epoch: int, offset: int, wanted: int) -> np.ndarray:
        shards = self._shards_of_epoch(epoch)
        # Positions at which the whole windows end; shards differ in size. A last, smaller window needs no end.
        ends = np.cumsum(np.diff(self.starts)[shards])[self.window - 1 :: self.window]
        number = int(np.searchsorted(ends, offset, side="right"))
        start = int(ends[number - 1]) if number else 0
        return self._of_window(epoch, number, shards)[offset - start : offset - start + wanted]

    def _shards_of_epoch(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, "shards", epoch)).permutation(len(self.starts) - 1)

    def _of_window(self, epoch: int, number: int, shards: np.ndarray) -> np.ndarray:
        held, permutation = self._in_window
        if held != (epoch, number):
            # Also of the last window, which may have fewer shards.
            here = shards[number * self.window : (number + 1) * self.window]
            samples = np.concatenate([np.arange(self.starts[shard], self.starts[shard + 1]) for shard in here])
            permutation = np.random.default_rng(derive_seed(self.seed, "window", epoch, number)).permutation(samples)
            self._in_window = ((epoch, number), permutation)
        return permutation


def order_of(data: TrainingData, seed: int) -> EpochOrder:
    """Return the training order that suits the data."""
    return WindowOrder(data.starts, data.window, seed) if data.window else EpochOrder(len(data), seed)
