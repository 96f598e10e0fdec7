"""The check of a noise schedule fails where a clause is broken."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from rearkit.contracts import NoiseStep
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


class Shifted(Uniform):
    """Replaces by the next code."""

    def replacements(self, step: NoiseStep) -> Tensor:
        return (step.tokens_BN + 1) % 11


class Mask(Uniform):
    extra_tokens = 1

    def replacements(self, step: NoiseStep) -> Tensor:
        return torch.full_like(step.tokens_BN, 11)


class Own(Uniform):
    reads = ("logits_BNV",)

    def replacements(self, step: NoiseStep) -> Tensor:
        assert step.logits_BNV is not None
        return step.logits_BNV.argmax(-1)


class PerToken(Uniform):
    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch, 6, generator=generator)


class OutOfRange(Mask):
    extra_tokens = 0


class OneCodeTooMany(Uniform):
    def replacements(self, step: NoiseStep) -> Tensor:
        # Rounds up to V where the draw is nearly 1.
        return (step.draws_BN * 11).round().long()


class DrawsByItself(Uniform):
    def replacements(self, step: NoiseStep) -> Tensor:
        return torch.randint(11, step.tokens_BN.shape)


class Shuffles(Uniform):
    def replacements(self, step: NoiseStep) -> Tensor:
        return step.tokens_BN.flip(0)


class WritesIntoTokens(Uniform):
    def replacements(self, step: NoiseStep) -> Tensor:
        return step.tokens_BN.fill_(0)


class ReadsClasses(Shifted):
    reads = ("classes_B",)


@pytest.mark.parametrize("schedule", [Uniform, Shifted, Mask, Own, PerToken])
def test_a_good_schedule_passes(schedule: type[Uniform]) -> None:
    check_noise_schedule(schedule())


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
        (OutOfRange(), r"replacements must lie in \[0, 10\]; found 11 to 11"),
        (OneCodeTooMany(), r"replacements must lie in \[0, 10\]; found 0 to 11"),
        (DrawsByItself(), "must be drawn from draws_BN; the global random state was used"),
        (Shuffles(), "replacements of a row must not depend on the other rows"),
        (WritesIntoTokens(), "must not write into the tokens"),
        (ReadsClasses(), "reads of a noise schedule can list logits_BNV only"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_schedule_fails(schedule: Uniform, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_noise_schedule(schedule)
