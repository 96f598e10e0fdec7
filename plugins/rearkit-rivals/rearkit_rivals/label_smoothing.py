"""Label smoothing whose smoothed share goes to codes with similar embeddings.

Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567), section 7, train on
targets (1 - ε)·δ_y + ε·u with uniform u. In place of u, a code v has here the share q(v | y), a softmax over v of
-d²(y, v)/(τ·s) with d its distance to the true code y, so that near misses cost less than far ones. That is our choice,
not the paper's, as is the scale s, the mean d² of a code to the nearest other: it makes τ = 1 mean the same in any
codebook.

Shapes: B batch, N tokens, V codes, Z their width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rearkit import setting, settings
from rearkit.contracts import Regularizer, RegularizerContext, TrainingStep
from rearkit_rivals.codes import METRICS, comparable, mean_nearest, nearest_codes


@settings
class LabelSmoothingSettings:
    """Give a share of each target to codes whose embeddings are near."""

    temperature: float = setting("τ: how far the smoothed share reaches", default=1.0, gt=0)
    metric: str = setting("distance between embeddings", default="euclidean", choices=METRICS)
    weight: float = setting("ε, the smoothed share of the target", default=0.1, ge=0, le=1)


class LabelSmoothing(Regularizer):
    """The regularizer; see the module docstring."""

    reads = ("logits_BNV",)
    codebook_VZ: Tensor
    scale: Tensor

    def __init__(self, settings: LabelSmoothingSettings, context: RegularizerContext) -> None:
        super().__init__()
        self.weight = settings.weight
        codebook_VZ = comparable(context.codebook_VZ, settings.metric)
        scale = torch.ones((), device=codebook_VZ.device)
        if len(codebook_VZ) > 1:
            scale = settings.temperature * mean_nearest(nearest_codes(codebook_VZ, 1)[0])
        # Not saved, since they follow from the tokenizer's weights and the settings.
        self.register_buffer("codebook_VZ", codebook_VZ.clone(), persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        """Return ``{"smoothing": …}``, which turns the total's cross-entropy into that with smoothed targets.

        CE((1 - ε)·δ_y + ε·q, p) = CE(δ_y, p) + ε·(CE(q, p) - CE(δ_y, p)), and with logits z the bracket is
        z_y - Σ_v q_v z_v, for the normalisers of p cancel. It may be negative.
        """
        assert step.logits_BNV is not None
        logits_BNV = step.logits_BNV.float()
        codebook_VZ = self.codebook_VZ.float()
        # -d² = 2 y·v - v·v - y·y, and y·y is the same for all v, so the softmax does without.
        scores_BNV = 2 * codebook_VZ[step.tokens_BN] @ codebook_VZ.T - codebook_VZ.square().sum(-1)
        shares_BNV = (scores_BNV / self.scale.float()).softmax(-1)
        true_BN = logits_BNV.gather(-1, step.tokens_BN[..., None])[..., 0]
        return {"smoothing": (true_BN - (shares_BNV * logits_BNV).sum(-1)).mean()}
