"""Pixels between uint8 and float, how far images differ, and pictures of many images for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rearkit.data.image_bytes import save_png
from rearkit.errors import DataError

VISIBLE = 96  # smaller images are enlarged until their longer side is near this, in pixels


def save_grid(path: Path, images: Tensor | np.ndarray, columns: int) -> None:
    """Save uint8 images as a PNG grid; small ones are enlarged to where they can be seen.

    Args:
        path: file for the picture.
        images: a tensor (n, 3, H, W), or an array (n, H, W, 3).
        columns: images in a row.
    """
    from torchvision.utils import make_grid  # here, since it takes seconds to import

    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images).permute(0, 3, 1, 2)
    scale = max(1, VISIBLE // max(images.shape[-2:]))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=96)
    save_png(path, grid.permute(1, 2, 0).numpy())


def save_pairs(path: Path, originals: Tensor, decoded: Tensor) -> None:
    """Save originals in the upper row and their reconstructions below, uint8 (n, 3, R, R) each."""
    save_grid(path, torch.cat([originals, decoded]), len(originals))


def enlarged(fields: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw fields (…, rows, columns) as a picture (…, height, width), each field of one colour."""
    rows, columns = (torch.arange(side) * count // side for side, count in zip(shape, fields.shape[-2:], strict=True))
    return fields[..., rows, :][..., columns]


def check_pixels(images: object) -> None:
    """Check that images are a tensor (n, 3, H, W) uint8: others would be tokenized all the same, as something else.

    Raises:
        DataError: they are not; the message says how to convert them.
    """
    if not isinstance(images, Tensor):
        raise DataError(f"images must be a tensor (n, 3, H, W) uint8; found {type(images).__name__}")
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise DataError(
            f"images must be (n, 3, H, W) uint8, from 0 to 255; found {str(images.dtype).removeprefix('torch.')} of "
            f"shape {tuple(images.shape)}; floats in [0, 1] are converted by (images * 255).round().to(torch.uint8), "
            "channels that come last by images.permute(0, 3, 1, 2)"
        )


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 in [0, 255] into float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """Turn float in [0, 1] into uint8 in [0, 255], rounded to the nearest."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,), of float images in [0, 1]."""
    error = (images - reference).pow(2).flatten(1).mean(1).clamp(min=1e-10)
    return -10 * torch.log10(error)
