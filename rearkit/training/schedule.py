"""Learning rate and weight decay, as in the published training."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from rearkit.recipe.train_table import TrainTable

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def learning_rate(train: TrainTable, step: int) -> float:
    """Return the learning rate of a step, from 0: linear over ``warmup_steps``, then half a cosine to ``end_lr``."""
    if step < train.warmup_steps:
        return train.lr * step / train.warmup_steps
    progress = (step - train.warmup_steps) / (train.steps - train.warmup_steps)
    return train.end_lr + (train.lr - train.end_lr) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those with weight decay and those without.

    Without are biases and other vectors, norms, embeddings, and tensors with "embed" in their names (positions).
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
        # The last part of the name only: a linear layer inside a module called "embed…" is decayed.
        exempt = parameter.ndim < 2 or id(parameter) in undecayed or "embed" in name.rpartition(".")[2]
        (other_group if exempt else decayed_group).append(parameter)
    groups = [
        {"params": decayed_group, "weight_decay": weight_decay},
        {"params": other_group, "weight_decay": 0.0},
    ]
    # DeepSpeed flattens each group into one tensor, so a group must not be empty.
    return [group for group in groups if group["params"]]
