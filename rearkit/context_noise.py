"""Noise in the context: which tokens are replaced, and by what (paper: "noisy context regularization").

What is drawn does not depend on the tokens, so that it can be drawn for a whole batch by every rank alike, and applied
to the rows that a rank has.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from rearkit.contracts import NoiseSchedule, NoiseStep
from rearkit.contracts.methods import PREDICTIONS
from rearkit.errors import ContractError
from rearkit.recipe.settings import settings
from rearkit.registry.contract import blaming, broken


@settings
class NoNoise:
    """No replacement: the context is the image's own tokens, as in a plain AR model."""

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Return zeros, (batch,)."""
        return torch.zeros(batch)


@attrs.frozen(eq=False)
class NoisyContext:
    """A context in which some tokens are replaced.

    Attributes:
        tokens_BN: (B, N) int64, the model's input.
        replaced_BN: (B, N) bool, True where a code was drawn, even if it equals the original.
        rates_B: (B,) float32, the replacement probability of each sample, or its mean over the sample's tokens.
    """

    tokens_BN: Tensor
    replaced_BN: Tensor
    rates_B: Tensor


@attrs.frozen(eq=False)
class NoiseDraw:
    """All that is random about a batch's noise.

    Attributes:
        rates_B: (B,) float32, as in `NoisyContext`.
        replaced_BN: (B, N) bool.
        codes_BN: (B, N) int64, uniform random codes; None if the schedule says by what tokens are replaced.
        draws_BN: (B, N) float32 in [0, 1) for the schedule to choose by; None if there are codes.
    """

    rates_B: Tensor
    replaced_BN: Tensor
    codes_BN: Tensor | None
    draws_BN: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> NoiseDraw:
        """Return the draw with each of its tensors changed in the same way."""
        codes_BN = None if self.codes_BN is None else change(self.codes_BN)
        draws_BN = None if self.draws_BN is None else change(self.draws_BN)
        return NoiseDraw(change(self.rates_B), change(self.replaced_BN), codes_BN, draws_BN)


def corrupt(
    tokens_BN: Tensor,
    noise: NoiseSchedule,
    progress: float,
    codebook_size: int,
    generator: torch.Generator,
    predict: Callable[[Tensor], Tensor] | None = None,
) -> NoisyContext:
    """Replace tokens with the probabilities that a schedule draws. Targets must stay clean.

    Args:
        tokens_BN: (B, N) int64 in [0, codebook_size), on any device.
        noise: the schedule; without a word from it, tokens are replaced by uniform random codes.
        progress: share of the training steps taken, in [0, 1].
        codebook_size: V.
        generator: source of randomness, on the CPU, so that a batch gets the same noise on every device.
        predict: from a context (B, N) to logits (B, N or N+1, V), for schedules that replace tokens by the model's own.

    Raises:
        PluginError: the schedule breaks its contract.
        ValueError: it needs ``predict``, or what this returns has another shape.
    """
    draw = draw_noise(noise, tuple(tokens_BN.shape), progress, codebook_size, generator)
    draw = draw.each(lambda tensor: tensor.to(tokens_BN.device))
    logits = None
    if reads_predictions(noise):
        if predict is None:
            raise ValueError(f"noise {type(noise).__name__} reads the model's predictions: give corrupt(predict=…)")
        with torch.no_grad():
            logits = predictions(predict(tokens_BN), tokens_BN)
    context_BN = replaced(tokens_BN, draw, noise, progress, logits)
    check_replacements(context_BN, draw.replaced_BN, noise, codebook_size)
    return NoisyContext(context_BN, draw.replaced_BN, draw.rates_B.cpu())


def predictions(logits: Tensor, tokens_BN: Tensor) -> Tensor:
    """Return the logits (B, N, V) that have targets, of (B, N or N+1, V).

    Raises:
        ValueError: there are fewer or more.
    """
    B, N = tokens_BN.shape
    # Not cut to fit: logits that begin with the positions of a prefix would be compared with the wrong tokens.
    if logits.dim() != 3 or logits.shape[0] != B or logits.shape[1] not in (N, N + 1):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} for tokens of shape {(B, N)}: expected ({B}, {N} or {N + 1}, V), "
            "where position i predicts token i; cut off the positions of a prefix before the one that predicts token 0"
        )
    return logits[:, :N]


def reads_predictions(noise: NoiseSchedule) -> bool:
    """Return whether a schedule's replacements depend on the model's predictions."""
    return PREDICTIONS in getattr(noise, "reads", ())


def takes_context(build: Callable[..., NoiseSchedule]) -> bool:
    """Return whether a schedule is built from a `rearkit.contracts.NoiseContext` besides its settings."""
    return len(inspect.signature(build).parameters) > 1


def extra_tokens(noise: NoiseSchedule) -> int:
    """Return how many token ids beyond the codebook a schedule's replacements may have."""
    return int(getattr(noise, "extra_tokens", 0))


def draw_noise(
    noise: NoiseSchedule, shape: tuple[int, ...], progress: float, codebook_size: int, generator: torch.Generator
) -> NoiseDraw:
    """Draw which of (B, N) tokens are replaced, on the CPU, and the codes or random numbers that decide by what.

    Raises:
        PluginError: the schedule's rates have another shape or range than its contract says.
    """
    B, N = shape
    with blaming(noise):
        rates = noise.rates(progress, B, generator)
    if not (isinstance(rates, Tensor) and rates.shape in ((B,), (B, N)) and rates.is_floating_point()):
        found = f"{rates.dtype} of shape {tuple(rates.shape)}" if isinstance(rates, Tensor) else repr(rates)
        raise _broken(noise, f"rates must be float32 of shape ({B},) or ({B}, {N}); found {found}")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise _broken(noise, f"rates must lie in [0, 1]; found {rates.min():g} to {rates.max():g}")
    rates_BN = rates[:, None] if rates.dim() == 1 else rates
    replaced_BN = torch.rand(B, N, generator=generator) < rates_BN
    # Drawn for all positions, so that the generator advances alike whatever the rates are.
    codes_BN = draws_BN = None
    if hasattr(noise, "replacements"):
        draws_BN = torch.rand(B, N, generator=generator)
    else:
        codes_BN = torch.randint(codebook_size, (B, N), generator=generator)
    return NoiseDraw(rates if rates.dim() == 1 else rates.mean(1), replaced_BN, codes_BN, draws_BN)


def replaced(
    tokens_BN: Tensor, draw: NoiseDraw, noise: NoiseSchedule, progress: float, logits_BNV: Tensor | None = None
) -> Tensor:
    """Return the context (B, N) int64: the tokens, with some replaced as a draw for the same rows says.

    Raises:
        PluginError: the schedule's replacements have another shape or type than its contract says.
    """
    codes_BN = draw.codes_BN
    if codes_BN is None:
        assert draw.draws_BN is not None
        schedule: Any = noise
        step = NoiseStep(tokens_BN, draw.replaced_BN, draw.draws_BN, progress, logits_BNV)
        with blaming(noise):
            codes_BN = schedule.replacements(step)
        if not isinstance(codes_BN, Tensor) or codes_BN.shape != tokens_BN.shape or codes_BN.dtype != torch.int64:
            found = f"{codes_BN.dtype} of shape {tuple(codes_BN.shape)}" if isinstance(codes_BN, Tensor) else codes_BN
            raise _broken(noise, f"replacements must be int64 of shape {tuple(tokens_BN.shape)}; found {found!r}")
    return torch.where(draw.replaced_BN, codes_BN, tokens_BN)


def check_replacements(context_BN: Tensor, replaced_BN: Tensor, noise: NoiseSchedule, codebook_size: int) -> None:
    """Check that a schedule's replacements are ids that the backbone knows; on a GPU, this waits for it.

    On the meta device, as in planning, there is nothing to look at.

    Args:
        context_BN: (B, N) int64, from `replaced`.
        replaced_BN: (B, N) bool, where a token was replaced.
        noise: the schedule.
        codebook_size: V.

    Raises:
        PluginError: a replacement is out of range.
    """
    if context_BN.is_meta or not hasattr(noise, "replacements"):
        return
    last = codebook_size + extra_tokens(noise) - 1
    wrong_BN = replaced_BN & ((context_BN < 0) | (context_BN > last))
    if wrong_BN.any():
        raise _broken(noise, f"replacements must lie in [0, {last}]; found {context_BN[wrong_BN][0].item()}")


def _broken(noise: NoiseSchedule, what: str) -> ContractError:
    return broken(noise, f"noise {type(noise).__name__}", what)
