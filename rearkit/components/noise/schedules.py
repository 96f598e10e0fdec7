"""The replacement rate e of each sample: none, a constant, or uniform below a level that is constant or falls.

The published code draws e ~ U[0, m(t)] with m falling from 1 to 0 between the start and three quarters of training;
the paper also reports e = c and e ~ U[0, m] with constant m.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from rearkit.context_noise import NoNoise
from rearkit.recipe.settings import setting, settings


@settings
class FixedNoise:
    """e = rate for every sample, throughout training."""

    rate: float = setting("replacement probability e", default=0.2, ge=0, le=1)

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Return ``rate`` for each sample, (batch,)."""
        return torch.full((batch,), float(self.rate))


@settings
class RandomNoise:
    """e ~ U[0, level] for each sample, with a constant level."""

    level: float = setting("upper end of the uniform distribution of e", default=0.5, ge=0, le=1)

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw one rate for each sample, (batch,)."""
        return torch.rand(batch, generator=generator) * self.level


@settings
class LinearNoise:
    """e ~ U[0, m(t)] for each sample, with m(t) linear in training progress t between two levels."""

    start_level: float = setting("m before and at span_start", default=1.0, ge=0, le=1)
    end_level: float = setting("m from span_end on", default=0.0, ge=0, le=1)
    span_start: float = setting("share of training at which m leaves start_level", default=0.0, ge=0, le=1)
    span_end: float = setting("share of training at which m reaches end_level", default=0.75, ge=0, le=1)

    def __attrs_post_init__(self) -> None:
        if self.span_end <= self.span_start:
            raise ValueError(f"span_end ({self.span_end}) must be greater than span_start ({self.span_start})")

    def level(self, progress: float) -> float:
        """Return m(t) at a share t of training in [0, 1]."""
        share = (progress - self.span_start) / (self.span_end - self.span_start)
        # Before and after the span, m stays at its two levels.
        share = min(1.0, max(0.0, share))
        return (1 - share) * self.start_level + share * self.end_level

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw one rate for each sample, (batch,)."""
        return torch.rand(batch, generator=generator) * self.level(progress)


Schedule: TypeAlias = NoNoise | FixedNoise | RandomNoise | LinearNoise
