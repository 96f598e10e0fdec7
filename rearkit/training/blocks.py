"""Activation checkpointing and compilation of a backbone's blocks during training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rearkit.errors import RecipeError
from rearkit.model import Model


@contextlib.contextmanager
def prepared_blocks(model: Model) -> Iterator[None]:
    """Within this context, a model's blocks are checkpointed and compiled as its recipe's ``[train]`` table says.

    Only each block's `forward` is replaced, so that modules, parameters and their names do not change. Blocks of the
    same class are compiled only once; a backbone that does not set ``blocks`` is compiled as a whole.

    Raises:
        RecipeError: checkpointing is on, but the backbone does not set ``blocks``.
    """
    table = model.recipe.train
    backbone = model.backbone
    named = getattr(model.backbone, "blocks", None)
    blocks: list[nn.Module] = [] if named is None else list(named)
    if table.activation_checkpointing and not blocks:
        raise RecipeError(
            [
                f"[train] activation_checkpointing: backbone {model.recipe.backbone.name!r} does not name its blocks "
                "(see `blocks` in rearkit.contracts.Backbone); leave it out"
            ]
        )
    changed = blocks or [backbone]
    if not (table.compile or table.activation_checkpointing):
        changed = []
    for block in changed:
        forward = block.forward
        # Compiled inside, checkpointed outside, so that the backward pass runs compiled code again.
        if table.compile:
            forward = torch.compile(forward, options=compiler_options())
        block.forward = _checkpointed(forward) if table.activation_checkpointing else forward
    try:
        yield
    finally:
        for block in changed:
            # The instance's attribute goes, and the class's method is found again.
            del block.forward


def compiler_options() -> dict[str, Any]:
    """Return the options of torch's compiler for training.

    The gradient of a block's modulations is six tensors side by side. By default one kernel writes all six and computes
    each of them for all entries, which takes 0.46 ms a block of S at micro-batch 128 on an H200.
    """
    from torch._inductor import config  # here, since it takes seconds to import

    # The second came with a later torch.
    names = ("max_pointwise_cat_inputs", "max_complex_pointwise_cat_inputs")
    return {name: 1 for name in names if hasattr(config, name)}


def _checkpointed(forward):  # type: ignore[no-untyped-def]
    """Drop a block's activations after the forward pass; the backward pass computes them again, with equal dropout."""

    def recomputed(*arguments, **keywords):  # type: ignore[no-untyped-def]
        # Without gradients, in validation, no activations are kept anyway.
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        return checkpoint(forward, *arguments, use_reentrant=False, **keywords)

    return recomputed
