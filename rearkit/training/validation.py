"""Cross-entropy and accuracy of teacher-forced prediction, for instance on held-out tokens."""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.context_noise import predictions
from rearkit.contracts import Backbone
from rearkit.data.subsets import drawn
from rearkit.data.token_shards import TokenData
from rearkit.model import Model

HELD_OUT = "held_out/"
HELD_OUT_LOSS = f"{HELD_OUT}cross_entropy"
HELD_OUT_ACCURACY = f"{HELD_OUT}accuracy"
VALIDATION_BATCH = 64
# Held-out samples used, at 256 tokens each over a million predictions. ImageNet's 50,000 would take ten times as long.
VALIDATION_LIMIT = 5000


@attrs.define
class Totals:
    """Sums, over batches, of cross-entropy and correct predictions."""

    nats: float = 0.0
    right: float = 0.0
    count: int = 0

    @torch.no_grad()
    def add(self, backbone: Backbone, context_BN: Tensor, tokens_BN: Tensor, classes_B: Tensor) -> None:
        """Add a batch: predict ``tokens_BN`` (B, N) from a context (B, N) and classes (B,)."""
        logits, _ = backbone(context_BN, classes_B)
        # In float32, even if the backbone computes in 16 bits: sums over thousands of tokens need the digits.
        logits_BNV = predictions(logits, tokens_BN).float()
        self.nats += F.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN.flatten(), reduction="sum").item()
        self.right += (logits_BNV.argmax(-1) == tokens_BN).sum().item()
        self.count += tokens_BN.numel()

    def means(self) -> tuple[float, float]:
        """Return the cross-entropy in nats per token, and the share of tokens whose likeliest code is the true one."""
        return self.nats / self.count, self.right / self.count


def validate(model: Model, data: TokenData, device: torch.device) -> dict[str, float]:
    """Return cross-entropy (nats per token) and accuracy in eval mode, with labels and without context noise.

    Not under the training's autocast, so that figures compare with those of float32.
    """
    # No more at once than a GPU was found to have room for in training.
    batch = min(VALIDATION_BATCH, model.recipe.train.micro_batch or VALIDATION_BATCH)
    backbone = model.backbone
    # Put back at the end: validation may run in the middle of training, or on a model that only samples.
    was_training = backbone.training
    backbone.eval()
    totals = Totals()
    for indices in torch.from_numpy(drawn(len(data), VALIDATION_LIMIT)).split(batch):
        tokens_BN, classes_B = (tensor.to(device) for tensor in data.take(indices.numpy()))
        totals.add(backbone, tokens_BN, tokens_BN, classes_B)
    backbone.train(was_training)
    return dict(zip((HELD_OUT_LOSS, HELD_OUT_ACCURACY), totals.means(), strict=True))
