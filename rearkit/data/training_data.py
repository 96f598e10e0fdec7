"""The interface of training data: token shards, or image shards that are tokenized during training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import numpy as np
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class TrainingSamples:
    """Samples as they were read.

    Attributes:
        content: tokens (B, N) int64, or images (B, 3, R, R) uint8.
        classes_B: (B,) int64 in [0, C).
        indices: (B,) the indices of the samples that were wanted.
        skipped: location and reason of each unreadable sample, which was replaced by another.
    """

    content: Tensor
    classes_B: Tensor
    indices: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()


# Reading and tokenizing are apart, since processes without a GPU read, and the one that trains tokenizes.
class TrainingData(Protocol):
    """Samples to train on, with indices from 0 to len - 1.

    Attributes:
        num_tokens: N.
        names: names of the shards.
        starts: (shards + 1,) the index of each shard's first sample, then the total number of samples.
        window: number of shards whose samples are mixed, so that few shards are read at a time; 0 mixes all.
        workers: number of processes that read for a rank; 0 for a thread.
    """

    num_tokens: int
    names: list[str]
    starts: np.ndarray
    window: int
    workers: int

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, places: np.ndarray, reading: Callable[[int], None]) -> TrainingSamples:
        """Read samples; any thread or process may call this.

        Args:
            indices: (B,) the samples.
            places: (B,) the position of each in the sequence of all samples of the run; it seeds what is drawn for it.
            reading: called with the number of each shard before it is read.

        Raises:
            DataError: the samples cannot be read.
        """
        ...

    def to_tokens(self, samples: TrainingSamples, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N) and classes (B,), int64, on a device.

        Raises:
            DataError: too many samples had to be skipped.
        """
        ...


def shards_of(data: TrainingData, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Return the names of the shards that samples come from."""
    # From the right, so that a shard's first index counts as this shard's; less one, since `starts` begins with 0.
    shards = np.unique(np.searchsorted(data.starts, np.asarray(indices, np.int64), side="right") - 1)
    return [data.names[shard] for shard in shards.tolist()]
