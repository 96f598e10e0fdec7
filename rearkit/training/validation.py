"""Cross-entropy and accuracy of teacher-forced prediction, on held-out tokens for one."""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.contracts import Backbone
from rearkit.data.token_shards import TokenData, spread
from rearkit.model import Model

HELD_OUT_LOSS, HELD_OUT_ACCURACY = "held_out/cross_entropy", "held_out/accuracy"
VALIDATION_BATCH = 64
VALIDATION_LIMIT = 5000  # held-out samples used


@attrs.define
class Totals:
    """Sums over batches of how well a backbone predicts."""

    nats: float = 0.0
    right: float = 0.0
    count: int = 0

    @torch.no_grad()
    def add(self, backbone: Backbone, context_BN: Tensor, tokens_BN: Tensor, classes_B: Tensor) -> None:
        """Predict the true tokens (B, N) from a context (B, N) and classes (B,)."""
        logits, _ = backbone(context_BN, classes_B)
        # In float32, also if the backbone computes in 16 bits: sums over thousands of tokens need the digits.
        logits_BNV = logits[:, : tokens_BN.shape[1]].float()
        self.nats += F.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN.flatten(), reduction="sum").item()
        self.right += (logits_BNV.argmax(-1) == tokens_BN).sum().item()
        self.count += tokens_BN.numel()

    def means(self) -> tuple[float, float]:
        """Return cross-entropy in nats per token, and the share of tokens whose likeliest code is right."""
        return self.nats / self.count, self.right / self.count


def validate(model: Model, data: TokenData, device: torch.device) -> dict[str, float]:
    """Measure clean, labelled prediction in eval mode: cross-entropy (nats per token) and accuracy."""
    backbone = model.backbone
    was_training = backbone.training
    backbone.eval()
    totals = Totals()
    for indices in torch.from_numpy(spread(len(data), VALIDATION_LIMIT)).split(VALIDATION_BATCH):
        tokens_BN, classes_B = (tensor.to(device) for tensor in data.take(indices.numpy()))
        totals.add(backbone, tokens_BN, tokens_BN, classes_B)
    backbone.train(was_training)
    return dict(zip((HELD_OUT_LOSS, HELD_OUT_ACCURACY), totals.means(), strict=True))
