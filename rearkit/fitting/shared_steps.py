"""A step of an optimizer on a batch that ranks share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rearkit.system import distributed

# The norm that gradients are clipped at.
CLIP = 1.0


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor, share: float) -> float:
    """Take a step on the whole batch's loss, or none where its gradient is not finite. All ranks must call this.

    Args:
        optimizer: of parameters that are the same on all ranks.
        loss: the mean over this rank's share of the batch, a scalar.
        share: this rank's share, in [0, 1].

    Returns:
        the norm of the gradient before it is clipped.
    """
    optimizer.zero_grad()
    loss.backward()
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if distributed.several():
        # One message, since each costs as much as many bytes.
        whole = distributed.summed(torch.cat([p.grad.flatten() for p in trained]) * share)
        for parameter, part in zip(trained, whole.split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)
    total = get_total_norm([p.grad for p in trained])
    norm = float(total)
    if torch.isfinite(total):
        clip_grads_with_norm_(trained, CLIP, total)
        optimizer.step()
    return norm
