"""Images varied at random in a fit: mirrored, and moved by a few pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.recipe.fit_table import FitTable


def varied(images_B3RR: Tensor, fit: FitTable) -> Tensor:
    """Mirror and move images (B, 3, R, R) as the settings say; edges are filled with their mirror image.

    Draws from torch's global generator, the same for a whole batch however many ranks share it.
    """
    count, side = len(images_B3RR), images_B3RR.shape[-1]
    if fit.flip:
        mirrored = torch.rand(count) < 0.5
        images_B3RR = torch.where(mirrored[:, None, None, None], images_B3RR.flip(3), images_B3RR)
    if fit.shift:
        by = min(fit.shift, side - 1)
        padded = F.pad(images_B3RR, (by,) * 4, mode="reflect")
        rows, columns = torch.randint(2 * by + 1, (2, count)).tolist()
        cut = [image[:, y : y + side, x : x + side] for image, y, x in zip(padded, rows, columns, strict=True)]
        images_B3RR = torch.stack(cut)
    return images_B3RR
