"""Tables of positions on a square grid, and how to change them to a grid of another size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resized_table(table_1TD: Tensor, places: int, prefix: int) -> Tensor | None:
    """Interpolate a table of positions in two dimensions (bicubic), as vision transformers do at other resolutions.

    Args:
        table_1TD: (1, T, D), rows of `prefix` positions and then of a square grid in raster order.
        places: rows wanted, those of the prefix included.
        prefix: positions before the grid, which stay as they are.

    Returns:
        (1, places, D), or None where one of both grids is not a square.
    """
    side, wanted = (math.isqrt(count - prefix) for count in (table_1TD.shape[1], places))
    if side**2 + prefix != table_1TD.shape[1] or wanted**2 + prefix != places:
        return None
    before, grid = table_1TD[:, :prefix], table_1TD[:, prefix:]
    image = grid.transpose(1, 2).unflatten(2, (side, side))
    # In float32, since bicubic interpolation has no half precision on a CPU.
    resized = F.interpolate(image.float(), size=(wanted, wanted), mode="bicubic", align_corners=False).to(grid)
    return torch.cat([before, resized.flatten(2).transpose(1, 2)], dim=1)
