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
from rearkit.system import distributed

HELD_OUT = "held_out/"
HELD_OUT_LOSS = f"{HELD_OUT}cross_entropy"
HELD_OUT_ACCURACY = f"{HELD_OUT}accuracy"
VALIDATION_BATCH = 64
# Held-out samples used, at 256 tokens each over a million predictions. ImageNet's 50,000 would take ten times as long.
VALIDATION_LIMIT = 5000


@attrs.define
class Totals:
    """Sums, over batches, of cross-entropy and correct predictions.

    Attributes:
        sums: (3,), float64, on the batches' device: nats, correct predictions, tokens. Only `means` reads them, since
            reading makes a GPU wait.
    """

    sums: Tensor = attrs.field(factory=lambda: torch.zeros(3, dtype=torch.float64))

    @torch.no_grad()
    def add(
        self, backbone: Backbone, context_BN: Tensor, tokens_BN: Tensor, classes_B: Tensor, rows: int | None = None
    ) -> None:
        """Add a batch: predict ``tokens_BN`` (B, N) from a context (B, N) and classes (B,). Count ``rows`` of them."""
        logits, _ = backbone(context_BN, classes_B)
        tokens_BN = tokens_BN[:rows]
        # In float32, even if the backbone computes in 16 bits: sums over thousands of tokens need the digits.
        logits_BNV = predictions(logits[:rows], tokens_BN).float()
        nats = F.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN.flatten(), reduction="none").double()
        right = (logits_BNV.argmax(-1) == tokens_BN).flatten().double()
        self.sums = self.sums.to(nats.device) + torch.stack([nats, right, torch.ones_like(nats)]).sum(1)

    def means(self) -> tuple[float, float]:
        """Return the cross-entropy in nats per token, and the share of tokens whose likeliest code is the true one."""
        nats, right, count = self.sums.tolist()
        return nats / count, right / count


def validate(model: Model, data: TokenData, device: torch.device) -> dict[str, float]:
    """Return cross-entropy (nats per token) and accuracy in eval mode, with labels and without context noise.

    Not under the training's autocast, so that figures compare with those of float32. All ranks must call this, since
    they share the images.
    """
    # No more at once than a GPU was found to have room for in training.
    batch = min(VALIDATION_BATCH, model.recipe.train.micro_batch or VALIDATION_BATCH)
    backbone = model.backbone
    # Put back at the end: validation may run in the middle of training, or on a model that only samples.
    was_training = backbone.training
    backbone.eval()
    totals = Totals()
    chosen = torch.from_numpy(drawn(len(data), VALIDATION_LIMIT))
    rank, world = (distributed.rank(), distributed.world_size()) if distributed.several() else (0, 1)
    rows = len(chosen[rank::world])
    # ZeRO stage 3 gathers weights in a forward pass, so that all ranks need as many: some read the last image again,
    # and don't count it.
    padded = F.pad(chosen, (0, -len(chosen) % world), value=int(chosen[-1]))
    for indices in padded[rank::world].split(batch):
        tokens_BN, classes_B = (tensor.to(device) for tensor in data.take(indices.numpy()))
        totals.add(backbone, tokens_BN, tokens_BN, classes_B, rows)
        rows -= len(indices)
    with distributed.divided_batch():
        totals.sums = distributed.summed(totals.sums)
    backbone.train(was_training)
    return dict(zip((HELD_OUT_LOSS, HELD_OUT_ACCURACY), totals.means(), strict=True))
