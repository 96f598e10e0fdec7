"""DeepSpeed's optimizer with gradients in float32, in fewer and larger kernels.

DeepSpeed converts, adds and measures the gradient of each parameter by itself: S has 385, of which each takes four
kernels of a few microseconds at a step, while the rest of the GPU has nothing to do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def join_gradients(optimizer: Any) -> None:
    """Change one of DeepSpeed's ``BF16_Optimizer`` so that its gradients are handled together; others stay as they are.

    Its gradients in float32 are parts of one tensor for each group of parameters.
    """
    # By the attributes that are used, since the class is private to DeepSpeed.
    if hasattr(optimizer, "fp32_groups_gradients_flat") and not optimizer.has_moe_layers:
        joined = _Joined(optimizer)
        optimizer.update_hp_grads = joined.update
        optimizer.get_grads_for_norm = joined.for_norm


class _Joined:
    """Replacements of two of the optimizer's methods, with their names' meaning."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @torch.no_grad()
    def update(self, clear_lp_grads: bool = False) -> None:
        """Add each parameter's gradient to its sum in float32."""
        outer = self.optimizer
        for group, sums, added in zip(
            outer.bf16_groups, outer.fp32_groups_gradients, outer.fp32_groups_has_gradients, strict=True
        ):
            here = [index for index, parameter in enumerate(group) if parameter.grad is not None]
            first = [index for index in here if not added[index]]
            more = [index for index in here if added[index]]
            # All sums are zero before the first gradient, so that it is copied.
            for indices, join in ((first, torch._foreach_copy_), (more, torch._foreach_add_)):
                if indices:
                    join([sums[i] for i in indices], [group[i].grad.view_as(sums[i]) for i in indices])
            for index in first:
                added[index] = True
            if clear_lp_grads:
                torch._foreach_zero_([group[index].grad for index in here])

    def for_norm(self, for_clipping: bool = False) -> Any:
        """Return the gradients whose norm is taken, or that are clipped: whole groups, whose padding is zero."""
        whole: list[Tensor] = list(self.optimizer.fp32_groups_gradients_flat)
        return whole if for_clipping else (whole, {})
