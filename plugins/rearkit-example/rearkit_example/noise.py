"""A noise schedule. It has no state, so its settings class is the schedule itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rearkit import setting, settings


@settings
class CosineNoise:
    """e ~ U[0, m(t)] for each sample, with m(t) half a cosine in training progress t between two levels."""

    start_level: float = setting("m at the start of training", default=1.0, ge=0, le=1)
    end_level: float = setting("m at its end", default=0.0, ge=0, le=1)

    def level(self, progress: float) -> float:
        """Return m(t) = end + (start - end)·(1 + cos πt)/2 at a share t of training in [0, 1]."""
        share = (1 + math.cos(math.pi * progress)) / 2
        return share * self.start_level + (1 - share) * self.end_level

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw one rate for each sample, (batch,)."""
        return torch.rand(batch, generator=generator) * self.level(progress)
