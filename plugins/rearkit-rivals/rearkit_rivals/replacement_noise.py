"""Noise that replaces tokens by something else than uniform random codes: a near code, or a mask.

How much is replaced follows the three schedules that the reAR paper compares for its own noise (fixed, random, linear),
so that runs differ by the replacements alone.

Shapes: B batch, N tokens, V codes, Z their width, K neighbours of each code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rearkit import setting, settings
from rearkit.contracts import NoiseContext, NoiseStep
from rearkit_rivals.codes import METRICS, comparable, mean_nearest, nearest_codes


@settings
class Rates:
    """How much of the context is replaced."""

    schedule: str = setting(
        "fixed: e = level for every sample; random: e ~ U[0, level]; linear: e ~ U[0, m(t)], m from level to end_level",
        default="random",
        choices=("fixed", "random", "linear"),
    )
    level: float = setting("replacement probability e, or its upper end", default=0.5, ge=0, le=1)
    end_level: float = setting("m from span_end on; of schedule linear alone", default=0.0, ge=0, le=1)
    span_end: float = setting("share of training at which m reaches end_level", default=0.75, gt=0, le=1)

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw one rate for each sample, (batch,)."""
        if self.schedule == "fixed":
            return torch.full((batch,), float(self.level))
        level = self.level
        if self.schedule == "linear":
            share = min(1.0, progress / self.span_end)
            level = (1 - share) * self.level + share * self.end_level
        return torch.rand(batch, generator=generator) * level


@settings
class NearestCodeSettings(Rates):
    """Replace tokens by codes whose embeddings are near: mistakes such as a trained model makes."""

    neighbours: int = setting("K: a token is replaced by one of its K nearest codes", default=8, ge=1)
    metric: str = setting("distance between embeddings", default="euclidean", choices=METRICS)
    temperature: float | None = setting(
        "τ: neighbour v has probability ∝ exp(-d²/(τ·s)), s the mean d² to the nearest code; left out: all K are alike",
        default=None,
        gt=0,
    )


class NearestCode:
    """Noise by near codes; not from a paper, but what the tokenizer's own quantization noise looks like.

    Neighbour k of token x is drawn with probability softmax_k(-d²(x, k) / (τ·s)), or 1/K. Distances of metric cosine
    are those between normalised embeddings, d² = 2 - 2 cos. The scale s makes τ = 1 mean the same in any codebook.

    Raises:
        ValueError: the codebook has too few codes.
    """

    def __init__(self, settings: NearestCodeSettings, context: NoiseContext) -> None:
        self.settings = settings
        codes = context.space.codebook_size
        if settings.neighbours >= codes:
            raise ValueError(f"neighbours = {settings.neighbours}: each of the {codes} codes has {codes - 1} others")
        codebook_VZ = comparable(context.codebook_VZ, settings.metric)
        squares_VK, self.neighbours_VK = nearest_codes(codebook_VZ, settings.neighbours)
        scores_VK = torch.zeros_like(squares_VK)
        if settings.temperature is not None:
            scores_VK = -squares_VK / (settings.temperature * mean_nearest(squares_VK))
        self.cumulative_VK = scores_VK.softmax(-1).cumsum(-1)

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw one rate for each sample, (batch,)."""
        return self.settings.rates(progress, batch, generator)

    def replacements(self, step: NoiseStep) -> Tensor:
        """Return one of each token's neighbours, (B, N)."""
        device = step.tokens_BN.device
        # Moved once: a noise schedule is no module, which would follow the model to its device.
        if self.neighbours_VK.device != device:
            self.neighbours_VK, self.cumulative_VK = self.neighbours_VK.to(device), self.cumulative_VK.to(device)
        passed_BN = (self.cumulative_VK[step.tokens_BN] <= step.draws_BN[..., None]).sum(-1)
        # The last sum may be rounded to less than 1, and the draw lie above it.
        index_BN = passed_BN.clamp(max=self.settings.neighbours - 1)
        return self.neighbours_VK[step.tokens_BN, index_BN]


@settings
class MaskTokenSettings(Rates):
    """Replace tokens by a mask: the model must predict with a part of the context missing."""


class MaskToken:
    """Noise by a mask token, whose id V comes after the codes: word dropout in its form for a decoder.

    Bowman et al. 2016, "Generating Sentences from a Continuous Space" (arXiv 1511.06349), section 3.1, replace input
    words of a decoder by the unknown word at a fixed rate, which is schedule ``fixed`` here.
    """

    extra_tokens = 1

    def __init__(self, settings: MaskTokenSettings, context: NoiseContext) -> None:
        self.settings = settings
        self.mask = context.space.codebook_size

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        """Draw one rate for each sample, (batch,)."""
        return self.settings.rates(progress, batch, generator)

    def replacements(self, step: NoiseStep) -> Tensor:
        """Return the mask's id everywhere, (B, N)."""
        return torch.full_like(step.tokens_BN, self.mask)
