"""Cross-entropy and accuracy on held-out tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rearkit.data.token_shards import TokenData, spread
from rearkit.model import Model

HELD_OUT_LOSS, HELD_OUT_ACCURACY = "held_out/cross_entropy", "held_out/accuracy"
VALIDATION_BATCH = 64
VALIDATION_LIMIT = 5000  # held-out samples used


@torch.no_grad()
def validate(model: Model, data: TokenData, device: torch.device) -> dict[str, float]:
    """Cross-entropy (nats per token) and accuracy of clean, labelled, teacher-forced prediction."""
    backbone = model.backbone
    was_training = backbone.training
    backbone.eval()
    chosen = spread(len(data), VALIDATION_LIMIT)
    count = len(chosen)
    total, correct = 0.0, 0.0
    for start in range(0, count, VALIDATION_BATCH):
        indices = chosen[start : start + VALIDATION_BATCH]
        tokens_BN, classes_B = (tensor.to(device) for tensor in data.take(indices))
        logits, _ = backbone(tokens_BN, classes_B)
        logits_BNV = logits[:, : tokens_BN.shape[1]].float()
        total += F.cross_entropy(logits_BNV.flatten(0, 1), tokens_BN.flatten(), reduction="sum").item()
        correct += (logits_BNV.argmax(-1) == tokens_BN).sum().item()
    backbone.train(was_training)
    places = count * data.num_tokens
    return {HELD_OUT_LOSS: total / places, HELD_OUT_ACCURACY: correct / places}
