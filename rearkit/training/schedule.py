"""Learning rate and weight decay, as the published training has them."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from rearkit.recipe.train_table import TrainTable

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def learning_rate(train: TrainTable, step: int) -> float:
    """Learning rate of step 0, 1, …: linear from 0 over ``warmup_steps``, then a half cosine down to ``end_lr``."""
    if step < train.warmup_steps:
        return train.lr * step / train.warmup_steps
    progress = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
    return train.end_lr + (train.lr - train.end_lr) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters in two: decayed, and not decayed.

    Not decayed are biases and other vectors, norms, embeddings, and tables whose name says that they embed (positions).
    """
    undecayed: set[int] = set()
    for owner in module.modules():
        if isinstance(owner, (nn.Embedding, *NORMS)):
            undecayed |= {id(parameter) for parameter in owner.parameters(recurse=False)}
    decayed_group: list[nn.Parameter] = []
    other_group: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim < 2 or id(parameter) in undecayed or "embed" in name.rpartition(".")[2]
        (other_group if exempt else decayed_group).append(parameter)
    groups = [
        {"params": decayed_group, "weight_decay": weight_decay},
        {"params": other_group, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
