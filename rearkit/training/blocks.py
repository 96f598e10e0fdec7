"""What is done to a backbone's blocks while they train: activation checkpointing and compilation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rearkit.errors import RecipeError
from rearkit.model import Model


@contextlib.contextmanager
def prepared_blocks(model: Model) -> Iterator[None]:
    """Within this context, a model's blocks run as its recipe's ``[train]`` table says.

    Only the `forward` of each block is exchanged, so that modules, parameters and their names stay as they are. Blocks
    of one class are compiled once for all of them; a backbone that does not name its blocks is compiled as a whole.

    Raises:
        RecipeError: the backbone does not name its blocks, which checkpointing needs.
    """
    table, backbone = model.recipe.train, model.backbone
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
        if table.compile:
            forward = torch.compile(forward)
        block.forward = _checkpointed(forward) if table.activation_checkpointing else forward
    try:
        yield
    finally:
        for block in changed:
            del block.forward  # the class's shows again


def _checkpointed(forward):  # type: ignore[no-untyped-def]
    """Forget a block's activations after its forward pass, and compute them again, dropout alike, in the backward."""

    def recomputed(*arguments, **keywords):  # type: ignore[no-untyped-def]
        if not torch.is_grad_enabled():
            return forward(*arguments, **keywords)
        return checkpoint(forward, *arguments, use_reentrant=False, **keywords)

    return recomputed
