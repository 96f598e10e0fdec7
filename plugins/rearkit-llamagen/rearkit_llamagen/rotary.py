"""Rotary positions in two dimensions, for image tokens in raster order behind one class embedding.

Shapes: T = 1 + N positions of the sequence, h width of a head, p = h/2 pairs of neighbouring channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0


def rotary_table(num_tokens: int, grid_width: int, head_dim: int) -> Tensor:
    """Return cosine and sine for each position and pair of channels, (2, T, p) float32.

    A token turns the first half of the pairs by its row and the second half by its column; in each half, pair i turns
    ``BASE^(-4i/h)`` radians a row or column. The class embedding has cosine and sine 0: its query and key vanish. A
    rotation by nothing would have cosine 1, but the published code and so the published weights have it this way.

    Args:
        num_tokens: N.
        grid_width: tokens in a row.
        head_dim: h, a multiple of 4.
    """
    frequencies = 1.0 / BASE ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    tokens_N = torch.arange(num_tokens)
    rows_N = tokens_N // grid_width
    columns_N = tokens_N % grid_width
    angles_Np = torch.cat([torch.outer(axis_N.float(), frequencies) for axis_N in (rows_N, columns_N)], dim=1)
    table_2Np = torch.stack([angles_Np.cos(), angles_Np.sin()])
    return torch.cat([table_2Np.new_zeros(2, 1, head_dim // 2), table_2Np], dim=1)


def rotate(x: Tensor, table_2Tp: Tensor) -> Tensor:
    """Rotate the pairs of neighbouring channels of (…, T, h) by a `rotary_table`; computed in float32."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine_Tp, sine_Tp = table_2Tp
    turned = (first * cosine_Tp - second * sine_Tp, first * sine_Tp + second * cosine_Tp)
    return torch.stack(turned, dim=-1).flatten(-2).type_as(x)
