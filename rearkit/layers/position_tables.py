"""Tables of positions on a grid, and how to change them to another grid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def square_grid(places: int) -> tuple[int, int] | None:
    """Return rows and columns of a square grid of so many places, or None if there is none."""
    side = math.isqrt(max(0, places))  # a damaged table may have fewer rows than its prefix
    return (side, side) if side**2 == places else None


def resized_table(table_1TD: Tensor, own: tuple[int, int], grid: tuple[int, int], prefix: int) -> Tensor:
    """Interpolate a table of positions in two dimensions (bicubic), as vision transformers do at other resolutions.

    Args:
        table_1TD: (1, T, D), rows of `prefix` positions and then of a grid in raster order.
        own: rows and columns of that grid.
        grid: rows and columns wanted.
        prefix: positions before the grid, which stay as they are.

    Returns:
        (1, prefix + rows · columns, D).
    """
    before, after = table_1TD[:, :prefix], table_1TD[:, prefix:]
    image = after.transpose(1, 2).unflatten(2, own)
    # In float32, since bicubic interpolation has no half precision on a CPU.
    resized = F.interpolate(image.float(), size=grid, mode="bicubic", align_corners=False).to(after)
    return torch.cat([before, resized.flatten(2).transpose(1, 2)], dim=1)
