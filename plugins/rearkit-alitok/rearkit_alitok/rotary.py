"""Positions of AliTok's tokens, a line of prefix tokens and then a square grid, as angles of rotary embeddings.

Shapes: T positions of the sequence (condition, prefix, grid), h width of a head, h/2 pairs of neighbouring channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def rotary_table(prefix_tokens: int, grid: int, head_dim: int) -> Tensor:
    """Return cosine and sine for each position and pair of channels, (2, T, h/2) float32, T = 1 + prefix + grid².

    Prefix token i turns all pairs by its index i. A grid token turns the first half of the pairs by its row and the
    second half by its column, both counted on from the prefix. The condition's cosine and sine are both 0, so that its
    query and key vanish, as in the published code, with which the published weights were trained.
    """
    line = _angles(torch.arange(prefix_tokens), head_dim)
    side = _angles(torch.arange(prefix_tokens, prefix_tokens + grid), head_dim // 2)
    rows = side.repeat_interleave(grid, 0)
    columns = side.repeat(grid, 1)
    angles = torch.cat([line, torch.cat([rows, columns], 1)]) if grid else line
    table = torch.stack([angles.cos(), angles.sin()])
    return torch.cat([torch.zeros(2, 1, table.shape[2]), table], 1)


def _angles(positions: Tensor, width: int) -> Tensor:
    """Return the angles of width/2 pairs at each position; pair i turns by ``position / BASE^(2i/width)``."""
    frequencies = 1.0 / BASE ** (torch.arange(0, width, 2).float() / width)
    return torch.outer(positions.float(), frequencies)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate each pair of neighbouring channels by its angle.

    Args:
        x: (…, K, h), K positions.
        table: (2, K, h/2), the rows of `rotary_table` for these positions.

    Returns:
        a tensor of the same shape and dtype, computed in float32.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = table
    turned = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], -1)
    return turned.flatten(-2).type_as(x)
