"""Exposure bias: how much worse a model predicts when tokens of its context are replaced.

Shapes: B samples, N tokens, V codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.context_noise import predictions
from rearkit.contracts import Backbone
from rearkit.sampling.drawing import draw
from rearkit.system.devices import derive_seed
from rearkit.training.validation import Totals

# Shares of context tokens to replace; own draws are measured at 1, too. Summaries rely on the first being 0 (clean
# context) and the last one half.
REPLACED = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
Batches = Iterable[tuple[Tensor, Tensor]]
"""Tokens (B, N) and classes (B,), int64, of real images."""


@attrs.frozen
class Prediction:
    """How well a model predicts the true tokens if a share of its context is replaced.

    Attributes:
        replaced: share of context tokens replaced, in [0, 1].
        cross_entropy: nats per token.
        accuracy: share of tokens whose likeliest code is right.
    """

    replaced: float
    cross_entropy: float
    accuracy: float


@attrs.frozen
class ByPosition:
    """Cross-entropy of each token of the raster, mean over images, nats.

    Attributes:
        clean: with the true tokens as context.
        own_draws: with the model's own draws as context. The first token has no context, so there both are the same.
    """

    clean: tuple[float, ...]
    own_draws: tuple[float, ...]

    def rise(self, start: float, end: float) -> float:
        """Return how much own draws cost, mean over a stretch of the tokens given by shares of their number, nats."""
        # At least one token long, also of an image of one or two.
        first = min(round(start * len(self.clean)), len(self.clean) - 1)
        chosen = slice(first, max(first + 1, round(end * len(self.clean))))
        costs = [own - clean for own, clean in zip(self.own_draws[chosen], self.clean[chosen], strict=True)]
        return sum(costs) / len(costs)


@torch.no_grad()
def under_random_codes(backbone: Backbone, batches: Batches, codebook_size: int) -> list[Prediction]:
    """Measure the prediction of true tokens when a share of the context is replaced by uniform random codes.

    A position replaced at one share is replaced by the same code at all larger shares, so that shares compare.

    Args:
        backbone: in eval mode.
        batches: real images.
        codebook_size: V.
    """
    totals = {share: Totals() for share in REPLACED}
    for index, (tokens_BN, classes_B) in enumerate(batches):
        # On the CPU, so that all devices draw the same numbers; seeded by batch, so that all models are measured alike.
        generator = torch.Generator().manual_seed(derive_seed(0, "replaced", index))
        threshold_BN = torch.rand(tokens_BN.shape, generator=generator).to(tokens_BN.device)
        random_BN = torch.randint(codebook_size, tokens_BN.shape, generator=generator).to(tokens_BN.device)
        for share, total in totals.items():
            context_BN = torch.where(threshold_BN < share, random_BN, tokens_BN)
            total.add(backbone, context_BN, tokens_BN, classes_B)
    return [Prediction(share, *total.means()) for share, total in totals.items()]


@torch.no_grad()
def under_own_draws(backbone: Backbone, batches: Batches) -> list[Prediction]:
    """Measure the prediction of true tokens when a share of the context is replaced by the model's own draws.

    A first pass predicts each token from the true tokens before it; replaced tokens are drawn from this prediction, as
    a sampler without guidance would draw them. A second pass predicts from the resulting context (Mihaylova and
    Martins 2019, "Scheduled Sampling for Transformers"). The targets stay the tokens of the real image.

    Args:
        backbone: in eval mode.
        batches: real images.
    """
    totals = {share: Totals() for share in (*REPLACED, 1.0)}
    for tokens_BN, classes_B, drawn_BN, threshold_BN, _ in _drawn(backbone, batches):
        for share, total in totals.items():
            context_BN = torch.where(threshold_BN < share, drawn_BN, tokens_BN)
            total.add(backbone, context_BN, tokens_BN, classes_B)
    return [Prediction(share, *total.means()) for share, total in totals.items()]


@torch.no_grad()
def by_position(backbone: Backbone, batches: Batches) -> ByPosition:
    """Measure each token's cross-entropy, with the true context and with the draws of `under_own_draws`.

    Errors of the context add up along the raster, so exposure bias is a difference that grows with the position.

    Args:
        backbone: in eval mode.
        batches: real images.
    """
    sums: list[Tensor] = [torch.zeros(1), torch.zeros(1)]
    count = 0
    for tokens_BN, classes_B, drawn_BN, _, clean_BNV in _drawn(backbone, batches):
        own_BNV = predictions(backbone.forward(drawn_BN, classes_B)[0], tokens_BN).float()
        for which, logits_BNV in enumerate((clean_BNV, own_BNV)):
            found_BN = F.cross_entropy(logits_BNV.transpose(1, 2), tokens_BN, reduction="none")
            found_N = found_BN.double().sum(0).cpu()
            sums[which] = sums[which] + found_N
        count += len(tokens_BN)
    clean, own = (tuple((one / count).tolist()) for one in sums)
    return ByPosition(clean, own)


def _drawn(backbone: Backbone, batches: Batches) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Yield each batch's tokens and classes, the model's draws for the tokens, a random number for each, and logits."""
    for index, (tokens_BN, classes_B) in enumerate(batches):
        generator = torch.Generator().manual_seed(derive_seed(0, "drawn", index))
        threshold_BN = torch.rand(tokens_BN.shape, generator=generator).to(tokens_BN.device)
        uniform_BN = torch.rand(tokens_BN.shape, generator=generator).to(tokens_BN.device).double()
        logits, _ = backbone.forward(tokens_BN, classes_B)
        clean_BNV = predictions(logits, tokens_BN).float()
        # Image by image, since a batch's probabilities in float64 would take much memory.
        drawn_BN = torch.stack([draw(*one) for one in zip(clean_BNV, uniform_BN, strict=True)])
        yield tokens_BN, classes_B, drawn_BN, threshold_BN, clean_BNV
