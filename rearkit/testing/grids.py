"""What the contracts say of grids other than squares; part of the checks of tokenizers and backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch

from rearkit.contracts import Backbone, TokenSpace, height_width
from rearkit.registry.component import Component
from rearkit.registry.setting_types import takes_pairs
from rearkit.testing.clauses import copy_state, require, stir
from rearkit.testing.tokenizers import check_tokenizer


def check_oblong(component: Component, settings: Any) -> None:
    """Check a tokenizer whose settings take height and width, at twice the height, with the weights of the square."""
    if not hasattr(settings, "image_size") or not takes_pairs(type(settings), "image_size"):
        return
    height, width = height_width(settings.image_size)
    square = component.build(settings)
    tall = component.build(attrs.evolve(settings, image_size=(2 * height, width)))
    require(
        tall.num_tokens == 2 * square.num_tokens,
        f"a tokenizer must have twice the tokens for images twice as high; found {square.num_tokens} and "
        f"{tall.num_tokens}",
    )
    copy_state(square, tall, "tokenizer")
    check_tokenizer(tall)


@torch.no_grad()
def check_grids(build: Callable[[TokenSpace], Backbone], space: TokenSpace) -> None:
    """Check that weights of a square grid serve a tall and a wide one, and that rows are told from columns."""

    def on(rows: int, columns: int) -> Backbone:
        return build(attrs.evolve(space, num_tokens=rows * columns, grid=(rows, columns)))

    square = on(3, 3)
    stir(square)
    tokens_1N = torch.randint(space.codebook_size, (1, 8))
    found = []
    for grid in ((4, 2), (2, 4)):
        backbone = on(*grid)
        taken, _ = backbone.adapted(square.state_dict())
        odd = [
            name for name, own in backbone.state_dict().items() if name not in taken or taken[name].shape != own.shape
        ]
        require(
            not odd,
            f"a backbone with any_grid = True must change weights of a square grid to one of {grid[0]} × {grid[1]} "
            f"tokens, in adapted; {', '.join(odd)} do not fit",
        )
        backbone.load_state_dict(taken)
        found.append(backbone.eval()(tokens_1N, torch.zeros(1, dtype=torch.int64))[0])
    require(
        not torch.equal(*found),
        "a backbone with any_grid = True must tell rows from columns, by TokenSpace.grid; its logits are the same for "
        "4 × 2 and 2 × 4 tokens",
    )
