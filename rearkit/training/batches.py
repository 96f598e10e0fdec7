"""What a step trains on: samples, noise and dropped labels, all drawn from seed and step alone.

What is random is drawn for the whole global batch, alike on every rank, so that the result does not depend on the
number of ranks or on gradient accumulation; samples are read only where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import numpy as np
import torch
from torch import Tensor

from rearkit.contracts import NoiseSchedule
from rearkit.data.training_data import Samples, TrainingData
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
        replaced_BN: (B, N) bool, where they differ by noise.
        classes_B: (B,) int64 in [0, C]; C where the label was dropped.
        noise_level: mean replacement probability, in [0, 1].
    """

    tokens_BN: Tensor
    context_BN: Tensor
    replaced_BN: Tensor
    classes_B: Tensor
    noise_level: float

    def rows(self, start: int, end: int) -> Batch:
        """Return some of the samples."""
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
        order: their order.
        noise: the schedule of context noise.
        codebook_size: V.
        num_classes: C.
        label_dropout: share of labels dropped.
        steps: of the whole run, for the schedule's progress.
        global_batch: samples a step.
        seed: of everything drawn.
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
    ) -> Samples:
        """Read a rank's share of a step's samples; see `TrainingData.read`."""
        share = self.global_batch // world
        rows = np.arange(rank * share, (rank + 1) * share)
        indices = self.order.batch(step, self.global_batch)[rows]
        return self.data.read(indices, step * self.global_batch + rows, reading)

    def batch(
        self,
        step: int,
        rank: int = 0,
        world: int = 1,
        samples: Samples | None = None,
        device: torch.device = CPU,
    ) -> Batch:
        """Return a rank's share of the global batch of a step.

        Args:
            step: counted from 0.
            rank: whose share.
            world: number of ranks.
            samples: what `read` returned for these; left out, it is called.
            device: where the batch is wanted.
        """
        tokens_BN, classes_B = self.data.to_tokens(samples or self.read(step, rank, world), device)
        share = self.global_batch // world
        mine = slice(rank * share, (rank + 1) * share)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "batch", step))
        whole_BN = torch.zeros(self.global_batch, tokens_BN.shape[1], dtype=torch.int64, device=device)
        whole_BN[mine] = tokens_BN  # the other ranks' rows are not needed, only what is drawn for them
        noisy = corrupt(whole_BN, self.noise, step / self.steps, self.codebook_size, generator)
        dropped_B = (torch.rand(self.global_batch, generator=generator) < self.label_dropout)[mine].to(device)
        classes_B = torch.where(dropped_B, self.num_classes, classes_B)
        level = noisy.rates_B.mean().item()
        return Batch(tokens_BN, noisy.tokens_BN[mine], noisy.replaced_BN[mine], classes_B, level)
