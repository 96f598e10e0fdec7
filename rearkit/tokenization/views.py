"""Views of an image: all of them, for token shards; or one drawn at random, for tokens made during training."""

from __future__ import annotations

import torch
from torch import Tensor

from rearkit.data.decoding import Decoding
from rearkit.recipe.tables import RANDOM_CROP

LARGER = ("ten-crop", RANDOM_CROP)  # these cut their views out of an image a tenth larger
FACTOR = 1.1


def read_at(augment: str, decoding: Decoding) -> Decoding:
    """How images are read, so that views of the size of ``decoding`` can be cut out of them."""
    return decoding.larger(FACTOR) if augment in LARGER else decoding


def views(image: Tensor, augment: str, size: int) -> list[Tensor]:
    """Views of a uint8 image (3, S, S), S the size of `read_at`: itself; it and its mirror; or ten crops.

    They are the image (``none``), the image and its mirror image (``flip``), or ten crops: the four corners and the
    middle of an image a tenth larger, then the mirror image of each.
    """
    if augment == "none":
        return [image]
    if augment == "flip":
        return [image, image.flip(-1)]
    # Here, since it takes seconds to import.
    from torchvision.transforms import functional as transforms

    return list(transforms.ten_crop(image, [size, size]))


def draw_view(image: Tensor, augment: str, size: int, generator: torch.Generator) -> Tensor:
    """Draw one of `views`, all equally likely; for ``random-crop``, a crop at any position, mirrored or not."""
    if augment != RANDOM_CROP:
        found = views(image, augment, size)
        return found[_below(len(found), generator)]
    top, left = (_below(side - size + 1, generator) for side in image.shape[1:])
    crop = image[:, top : top + size, left : left + size]
    return crop.flip(-1) if _below(2, generator) else crop


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))
