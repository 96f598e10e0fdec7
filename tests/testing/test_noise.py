"""The check of a noise schedule fails where a clause is broken."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from rearkit.testing import check_noise_schedule


class Uniform:
    """A schedule that keeps the contract."""

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch, generator=generator)


class AboveOne(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return super().rates(progress, batch, generator) * (1 + progress)


class NotANumber(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return super().rates(progress, batch, generator) * float("nan" if progress == 1 else 1)


class GlobalTorch(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch)


class GlobalNumpy(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.from_numpy(np.random.rand(batch)).float()


class GlobalPython(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.full((batch,), random.random())


class OwnGenerator(Uniform):
    def __init__(self) -> None:
        self.generator = torch.Generator()

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch, generator=self.generator)


class Remembers(Uniform):
    def __init__(self) -> None:
        self.furthest = 0.0

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        self.furthest = max(self.furthest, progress)
        return torch.full((batch,), self.furthest)


class OneForAll(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(1, generator=generator)


class Scalar(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return 0.5  # type: ignore[return-value]


class Double(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return super().rates(progress, batch, generator).double()


def test_a_good_schedule_passes() -> None:
    check_noise_schedule(Uniform())


@pytest.mark.parametrize(
    ("schedule", "clause"),
    [
        (AboveOne(), r"rates must lie in \[0, 1\]; at progress 0.1"),
        (NotANumber(), r"rates must lie in \[0, 1\]; at progress 1"),
        (GlobalTorch(), "the global random state was used"),
        (GlobalNumpy(), "the global random state was used"),
        (GlobalPython(), "the global random state was used"),
        (OwnGenerator(), "must depend on progress, batch and generator alone"),
        (Remembers(), "must depend on progress, batch and generator alone"),
        (OneForAll(), r"must be a tensor, torch.float32 of shape \(300,\); found torch.float32 of shape \(1,\)"),
        (Scalar(), "must be a tensor, .* found float"),
        (Double(), "must be a tensor, torch.float32 .* found torch.float64"),
        (object(), "must have a method rates"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_schedule_fails(schedule: Uniform, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_noise_schedule(schedule)
