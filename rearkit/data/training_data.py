"""What a training step reads, and from what: token shards, or image shards that are tokenized as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import numpy as np
import torch
from torch import Tensor


@attrs.frozen(eq=False)
class Samples:
    """Some samples as they were read.

    Attributes:
        content: tokens (B, N) int64, or images (B, 3, R, R) uint8.
        classes_B: (B,) int64 in [0, C).
        indices: which samples they are.
        skipped: where and why something else had to be taken instead.
    """

    content: Tensor
    classes_B: Tensor
    indices: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()


class TrainingData(Protocol):
    """Samples to train on, by their indices from 0 to len - 1.

    Attributes:
        num_tokens: N.
        names: the shards.
        starts: (shards + 1,) the index of each shard's first sample, and after the last.
        window: of how many shards the samples are mixed, so that few are read at a time; 0: of all.
        workers: processes that read for a rank; 0: a thread.
    """

    num_tokens: int
    names: list[str]
    starts: np.ndarray
    window: int
    workers: int

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray, places: np.ndarray, reading: Callable[[int], None]) -> Samples:
        """Read samples, on any thread or process.

        Args:
            indices: which, (B,).
            places: where each stands in the sequence of all samples of a run, (B,): seeds what is drawn for it.
            reading: told the number of each shard before it is read.

        Raises:
            DataError: they cannot be read.
        """
        ...

    def to_tokens(self, samples: Samples, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return tokens (B, N) and classes (B,), int64, on a device.

        Raises:
            DataError: too many samples had to be skipped.
        """
        ...


def shards_of(data: TrainingData, indices: Sequence[int] | np.ndarray) -> list[str]:
    """Name the shards that samples come from."""
    shards = np.unique(np.searchsorted(data.starts, np.asarray(indices, np.int64), side="right") - 1)
    return [data.names[shard] for shard in shards.tolist()]
