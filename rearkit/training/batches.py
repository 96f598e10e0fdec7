"""The batch of a step: samples, noise and dropped labels, all determined by the seed and the step alone.

Every rank draws the random numbers for the whole global batch and uses its share, so that the result does not depend on
the number of ranks or on gradient accumulation. Samples are read only by the rank that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.contracts import NoiseSchedule
from rearkit.data.training_data import TrainingData, TrainingSamples
from rearkit.objective import corrupt
from rearkit.system.devices import derive_seed
from rearkit.training.order import EpochOrder

CPU = torch.device("cpu")


@attrs.frozen(eq=False)
class Batch:
    """Samples to train on.

    Attributes:
        tokens_BN: (B, N) int64, the targets.
        context_BN: (B, N) int64, what the model reads.
        replaced_BN: (B, N) bool, True where the context was replaced by noise.
        classes_B: (B,) int64 in [0, C]; C where the label was dropped.
        noise_level: mean replacement probability, in [0, 1].
    """

    tokens_BN: Tensor
    context_BN: Tensor
    replaced_BN: Tensor
    classes_B: Tensor
    noise_level: float

    def rows(self, start: int, end: int) -> Batch:
        """Return the samples from ``start`` to before ``end``."""
        return Batch(
            self.tokens_BN[start:end],
            self.context_BN[start:end],
            self.replaced_BN[start:end],
            self.classes_B[start:end],
            self.noise_level,
        )

    def pieces(self, size: int) -> Iterator[Batch]:
        """Yield the samples in pieces of ``size``."""
        for start in range(0, len(self.classes_B), size):
            yield self.rows(start, start + size)


@attrs.frozen(eq=False)
class BatchSource:
    """Makes the batches of a run.

    Attributes:
        data: all training samples.
        order: the order in which they are seen.
        noise: the schedule of context noise.
        codebook_size: V.
        num_classes: C.
        label_dropout: share of labels that are dropped, in [0, 1].
        steps: number of steps of the whole run, for the schedule's progress.
        global_batch: samples per step, of all ranks.
        seed: seed of everything that is drawn.
    """

    data: TrainingData
    order: EpochOrder
    noise: NoiseSchedule
    codebook_size: int
    num_classes: int
    label_dropout: float
    steps: int
    global_batch: int
    seed: int

    def read(
        self, step: int, rank: int = 0, world: int = 1, reading: Callable[[int], None] = lambda shard: None
    ) -> TrainingSamples:
        """Read a rank's share of a step's samples; see `TrainingData.read`."""
        share = self.global_batch // world
        # Consecutive rows of the global batch, the same that `batch` gives to this rank.
        rows = np.arange(rank * share, (rank + 1) * share)
        indices = self.order.batch(step, self.global_batch)[rows]
        return self.data.read(indices, step * self.global_batch + rows, reading)

    def batch(
        self,
        step: int,
        rank: int = 0,
        world: int = 1,
        samples: TrainingSamples | None = None,
        device: torch.device = CPU,
    ) -> Batch:
        """Return a rank's share of the global batch of a step.

        Args:
            step: the step, counted from 0.
            rank: the rank.
            world: number of ranks.
            samples: what `read` returned for the same step and rank; if None, they are read now.
            device: device to put the batch on.
        """
        tokens_BN, classes_B = self.data.to_tokens(samples or self.read(step, rank, world), device)
        share = self.global_batch // world
        mine = slice(rank * share, (rank + 1) * share)
        # On the CPU, so that every device gets the same numbers.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "batch", step))
        # The other ranks' rows stay zero: their noise must be drawn, but their tokens are not needed.
        whole_BN = torch.zeros(self.global_batch, tokens_BN.shape[1], dtype=torch.int64, device=device)
        whole_BN[mine] = tokens_BN
        noisy = corrupt(whole_BN, self.noise, step / self.steps, self.codebook_size, generator)
        dropped_B = (torch.rand(self.global_batch, generator=generator) < self.label_dropout)[mine].to(device)
        # The id after the last class stands for "no label".
        classes_B = torch.where(dropped_B, self.num_classes, classes_B)
        level = noisy.rates_B.mean().item()
        return Batch(tokens_BN, noisy.tokens_BN[mine], noisy.replaced_BN[mine], classes_B, level)
