"""Exposure bias: how much worse a model predicts when its context is not the clean one that it was trained on.

Shapes: B samples, N tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.contracts import Backbone
from rearkit.system.devices import derive_seed

REPLACED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
Batches = Iterable[tuple[Tensor, Tensor]]
"""Tokens (B, N) and classes (B,), int64, of real images."""


@attrs.frozen
class Prediction:
    """How well the true tokens are predicted under contexts of one kind.

    Attributes:
        replaced: share of context tokens replaced, in [0, 1].
        cross_entropy: nats per token.
        accuracy: share of tokens whose likeliest code is right.
    """

    replaced: float
    cross_entropy: float
    accuracy: float


@torch.no_grad()
def under_random_codes(
    backbone: Backbone, batches: Batches, codebook_size: int, shares: Sequence[float] = REPLACED, seed: int = 0
) -> list[Prediction]:
    """Predict true tokens where a share of the context is replaced by uniform random codes.

    A place that is replaced at one share is replaced by the same code at all larger ones, so that shares compare.
    """
    totals = [_Total(share) for share in shares]
    for index, (tokens_BN, classes_B) in enumerate(batches):
        generator = torch.Generator().manual_seed(derive_seed(seed, "replaced", index))
        threshold_BN = torch.rand(tokens_BN.shape, generator=generator).to(tokens_BN.device)
        random_BN = torch.randint(codebook_size, tokens_BN.shape, generator=generator).to(tokens_BN.device)
        for total in totals:
            context_BN = torch.where(threshold_BN < total.replaced, random_BN, tokens_BN)
            total.add(backbone, context_BN, tokens_BN, classes_B)
    return [total.mean() for total in totals]


@torch.no_grad()
def under_own_draws(
    backbone: Backbone, batches: Batches, shares: Sequence[float] = (*REPLACED, 1.0), seed: int = 0
) -> list[Prediction]:
    """Predict true tokens where a share of the context is replaced by what the model itself draws in their place.

    Each such token is drawn from the model's prediction given the true tokens before it, as a sampler without guidance
    would draw it (two passes, as in Mihaylova and Martins 2019, "Scheduled Sampling for Transformers"). The targets
    stay those of the real image; nothing else could be right or wrong.
    """
    totals = [_Total(share) for share in shares]
    for index, (tokens_BN, classes_B) in enumerate(batches):
        generator = torch.Generator().manual_seed(derive_seed(seed, "drawn", index))
        threshold_BN = torch.rand(tokens_BN.shape, generator=generator).to(tokens_BN.device)
        uniform_BN = torch.rand(tokens_BN.shape, generator=generator).to(tokens_BN.device)
        logits, _ = backbone.forward(tokens_BN, classes_B)
        cumulative_BNV = logits[:, : tokens_BN.shape[1]].float().softmax(-1).cumsum(-1)
        drawn_BN = (cumulative_BNV < uniform_BN[..., None] * cumulative_BNV[..., -1:]).sum(-1)
        for total in totals:
            context_BN = torch.where(threshold_BN < total.replaced, drawn_BN, tokens_BN)
            total.add(backbone, context_BN, tokens_BN, classes_B)
    return [total.mean() for total in totals]


@attrs.define
class _Total:
    """Sums over batches."""

    replaced: float
    nats: float = 0.0
    right: float = 0.0
    count: int = 0

    def add(self, backbone: Backbone, context_BN: Tensor, tokens_BN: Tensor, classes_B: Tensor) -> None:
        logits, _ = backbone.forward(context_BN, classes_B)
        logits_BNV = logits[:, : tokens_BN.shape[1]].float()
        self.nats += F.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN.flatten(), reduction="sum").item()
        self.right += (logits_BNV.argmax(-1) == tokens_BN).sum().item()
        self.count += tokens_BN.numel()

    def mean(self) -> Prediction:
        return Prediction(self.replaced, self.nats / self.count, self.right / self.count)
