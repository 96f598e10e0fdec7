"""In- and outpainting: the tokens of the pixels that are kept are given, the others are drawn, pixels are blended.

Shapes: H × W image, N tokens in a grid, each of a square patch of pixels, n alternatives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.contracts import grid_of, height_width
from rearkit.data.pixels import to_float
from rearkit.errors import RearkitError
from rearkit.model import Model
from rearkit.sampling.sampler import Sampler

# Share of a patch's side over which kept pixels fade into drawn ones.
FADE = 1 / 4


def known_tokens(model: Model, kept_HW: Tensor) -> Tensor:
    """Return which tokens are known, bool (N,): those whose whole patch is kept.

    Args:
        model: whose tokenizer has its tokens in raster order.
        kept_HW: (H, W) bool.

    Raises:
        RearkitError: the tokenizer's tokens have no places, or nothing is left to keep or to draw.
    """
    tokenizer, name = model.tokenizer, model.recipe.tokenizer.name
    grid = grid_of(tokenizer)
    if grid is None:
        raise RearkitError(
            f"[tokenizer] {name}: its tokens have no places in the image, so no part of one can be kept; "
            "use a model whose tokenizer has a grid, such as maskgit-vqgan"
        )
    patch = height_width(tokenizer.image_size)[0] // grid[0]
    # The least of a patch, as the negated largest of the negated.
    known_N = -F.max_pool2d(-kept_HW[None, None].float(), patch).flatten() > 0
    if not known_N.any():
        raise RearkitError(f"no patch of {patch} × {patch} pixels is kept as a whole, so no token is known; keep more")
    if known_N.all():
        raise RearkitError("every patch is kept as a whole, so nothing is to be drawn; keep less")
    return known_N


@torch.no_grad()
def edit(
    sampler: Sampler,
    photo: Tensor,
    kept_HW: Tensor,
    classes: Sequence[int],
    numbers: Sequence[int] | None = None,
    fade: int | None = None,
) -> np.ndarray:
    """Draw what is not kept of a photo, once for each of ``classes``; return images (n, H, W, 3) uint8.

    Args:
        sampler: of the trained model.
        photo: (3, H, W) uint8.
        kept_HW: (H, W) bool, the pixels that are kept.
        classes: the class of each image.
        numbers: the number of each image, which fixes its randomness; if None, 0, 1, 2, …
        fade: pixels over which kept ones fade into drawn ones, inside the kept part; if None, a quarter of a patch.

    Raises:
        RearkitError: see `known_tokens`; or ``fade`` is longer than the image.
    """
    if fade is not None and fade > max(kept_HW.shape):
        raise RearkitError(f"fade: {fade} pixels, but the image's longer side has {max(kept_HW.shape)}; give fewer")
    given_N, known_N = given_tokens(sampler, photo, kept_HW)
    parts = [part.images for part in sampler.stream(classes, 0, numbers, None, given_N, known_N)]
    return blend(np.concatenate(parts), photo, kept_HW, default_fade(sampler.model) if fade is None else fade)


@torch.no_grad()
def given_tokens(sampler: Sampler, photo: Tensor, kept_HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return a photo's tokens, (N,) int64, and which of them are known, (N,) bool.

    Raises:
        RearkitError: see `known_tokens`.
    """
    known_N = known_tokens(sampler.model, kept_HW)
    tokens_1N = sampler.model.tokenizer.encode(to_float(photo[None]).to(sampler.device))
    return tokens_1N[0].cpu(), known_N


def default_fade(model: Model) -> int:
    """Return over how many pixels kept ones fade into drawn ones, unless it is said: a quarter of a patch."""
    rows, _ = grid_of(model.tokenizer) or (1, 1)
    return int(FADE * height_width(model.tokenizer.image_size)[0] / rows)


def blend(images: np.ndarray, photo: Tensor, kept_HW: Tensor, fade: int) -> np.ndarray:
    """Put the kept pixels of a photo into images (n, H, W, 3) uint8; near the others they fade into the images'.

    Kept pixels more than ``fade`` pixels away from those that are not come back unchanged.
    """
    drawn = (~kept_HW)[None, None].float()
    # Shrunk by 0 to `fade` pixels and averaged: the weight rises from the edge inwards in equal steps. Pixel by pixel,
    # as pools of each width at once would cost the cube of `fade`.
    shrunk = 1 - drawn
    for _ in range(fade):
        drawn = F.max_pool2d(drawn, 3, 1, 1)
        shrunk += 1 - drawn
    weight = (shrunk / (fade + 1))[0].permute(1, 2, 0).numpy()
    own = photo.permute(1, 2, 0).numpy().astype(np.float32)
    return np.rint(weight * own + (1 - weight) * images).astype(np.uint8)
