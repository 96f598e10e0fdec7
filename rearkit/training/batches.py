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

from rearkit.context_noise import NoiseDraw, draw_noise, reads_predictions, replaced
from rearkit.contracts import NoiseSchedule
from rearkit.data.training_data import TrainingData, TrainingSamples
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
        progress: share of the training steps taken, in [0, 1).
        images: (B, 3, R, R) uint8, where a regularizer reads them.
        draw: the noise that is left to apply, if its replacements depend on the model's predictions. Then the context
            holds the clean tokens.
    """

    tokens_BN: Tensor
    context_BN: Tensor
    replaced_BN: Tensor
    classes_B: Tensor
    noise_level: float
    progress: float = 0.0
    images: Tensor | None = None
    draw: NoiseDraw | None = None

    def rows(self, start: int, end: int) -> Batch:
        """Return the samples from ``start`` to before ``end``."""
        return attrs.evolve(
            self,
            tokens_BN=self.tokens_BN[start:end],
            context_BN=self.context_BN[start:end],
            replaced_BN=self.replaced_BN[start:end],
            classes_B=self.classes_B[start:end],
            images=None if self.images is None else self.images[start:end],
            draw=None if self.draw is None else self.draw.each(lambda tensor: tensor[start:end]),
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
        keeps_images: whether batches have the images that tokens were made from.
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
    keeps_images: bool = False

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
        samples = samples or self.read(step, rank, world)
        tokens_BN, classes_B = self.data.to_tokens(samples, device)
        share = self.global_batch // world
        mine = slice(rank * share, (rank + 1) * share)
        # On the CPU, so that every device gets the same numbers.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "batch", step))
        progress = step / self.steps
        shape = (self.global_batch, tokens_BN.shape[1])
        draw = draw_noise(self.noise, shape, progress, self.codebook_size, generator)
        dropped_B = (torch.rand(self.global_batch, generator=generator) < self.label_dropout)[mine].to(device)
        level = draw.rates_B.mean().item()
        # The other ranks' noise had to be drawn, but is not needed.
        draw = draw.each(lambda tensor: tensor[mine].to(device))
        waits = reads_predictions(self.noise)
        return Batch(
            tokens_BN=tokens_BN,
            context_BN=tokens_BN if waits else replaced(tokens_BN, draw, self.noise, progress),
            replaced_BN=draw.replaced_BN,
            # The id after the last class stands for "no label".
            classes_B=torch.where(dropped_B, self.num_classes, classes_B),
            noise_level=level,
            progress=progress,
            images=samples.content.to(device) if self.keeps_images else None,
            draw=draw if waits else None,
        )
