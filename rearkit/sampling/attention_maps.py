"""Where a model is unsure of its own samples, and what it looks at: maps over the raster of tokens.

Shapes: B samples, N tokens on a grid, T positions, H heads, V codes, y × x pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rearkit.context_noise import predictions
from rearkit.contracts import grid_of
from rearkit.data.pixels import enlarged
from rearkit.errors import RearkitError
from rearkit.model import Model

# Of the probability, which the least number of codes holds.
MOST = 0.9
COLUMNS = ("the sample", "probability of the likeliest code", f"codes that hold {MOST:.0%} of the probability")
WATCHED = ("attention from the middle token", "attention from the last token")


class AttentionWatch(TorchFunctionMode):
    """Within this context, adds up what some positions attend to, over all calls of torch's fused attention.

    Args:
        positions: whose attention is wanted.
        length: T; attention over another number of positions is another part's, and passed over.
    """

    def __init__(self, positions: Sequence[int], length: int) -> None:
        super().__init__()
        self.positions = list(positions)
        self.length = length
        self.sum_BQT: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._note(args[0], args[1], kwargs.get("scale"))
        return func(*args, **kwargs)

    def _note(self, q_BHTd: Tensor, k_BHTd: Tensor, scale: float | None) -> None:
        if q_BHTd.ndim != 4 or q_BHTd.shape[2] != self.length or k_BHTd.shape != q_BHTd.shape:
            return
        rows_BHQT = q_BHTd[:, :, self.positions].float() @ k_BHTd.float().mT
        rows_BHQT = rows_BHQT * (scale or q_BHTd.shape[-1] ** -0.5)
        places = torch.arange(self.length, device=q_BHTd.device)
        later = places[None] > torch.tensor(self.positions, device=q_BHTd.device)[:, None]
        weights_BQT = rows_BHQT.masked_fill(later, -math.inf).softmax(-1).mean(1)
        self.sum_BQT = weights_BQT if self.sum_BQT is None else self.sum_BQT + weights_BQT


@torch.no_grad()
def sample_maps(model: Model, images_Byx3: Tensor, tokens_BN: Tensor, classes_B: Tensor) -> tuple[Tensor, list[str]]:
    """Return maps of a few samples as pictures, and what each column of them shows.

    All are of one pass over the samples' tokens, without guidance.

    Args:
        model: with a tokenizer whose tokens are a grid in raster order (`raster`).
        images_Byx3: uint8, the samples.
        tokens_BN: int64, their tokens.
        classes_B: int64, their classes.

    Returns:
        (B · columns, 3, y, x) uint8, a sample's columns one after the other; and the columns' names.

    Raises:
        RearkitError: the tokens have no places in the image.
    """
    grid = grid_of(model.tokenizer)
    if grid is None:
        raise RearkitError(f"[tokenizer] {model.recipe.tokenizer.name}: its tokens have no places to draw maps of")
    backbone, device = model.backbone.eval(), next(model.backbone.parameters()).device
    count, prefix = tokens_BN.shape[1], backbone.prefix_length
    rows, columns = grid
    # The place that predicts a token is the one before it.
    watched = [prefix + index - 1 for index in (rows // 2 * columns + columns // 2, count - 1)]
    with AttentionWatch(watched, prefix + count) as watch:
        logits, _ = backbone(tokens_BN.to(device), classes_B.to(device))
    p_BNV = predictions(logits, tokens_BN).float().softmax(-1)
    sorted_BNV = p_BNV.sort(-1, descending=True).values
    needed_BN = (sorted_BNV.cumsum(-1) < MOST).sum(-1) + 1
    maps = [sorted_BNV[..., 0], needed_BN.log() / math.log(p_BNV.shape[-1])]
    names = list(COLUMNS)
    if watch.sum_BQT is not None:
        over_BQN = watch.sum_BQT[..., prefix:]
        maps += [row / row.amax(-1, keepdim=True).clamp(min=1e-9) for row in over_BQN.unbind(1)]
        names += WATCHED
    pictures_B3yx = images_Byx3.permute(0, 3, 1, 2).cpu()
    drawn = [pictures_B3yx, *(_coloured(one.cpu(), grid, pictures_B3yx.shape[2:]) for one in maps)]
    return torch.stack(drawn, 1).flatten(0, 1), names


def _coloured(map_BN: Tensor, grid: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """Colour numbers (B, N) in [0, 1] as fields of a picture (B, 3, y, x) uint8, dark for 0 and bright for 1."""
    # Here, since it takes a while to import.
    import matplotlib

    colours = torch.from_numpy(matplotlib.colormaps["viridis"](map_BN.unflatten(1, grid).numpy())[..., :3])
    picture = (colours.permute(0, 3, 1, 2) * 255).round().to(torch.uint8)
    return enlarged(picture, shape)
