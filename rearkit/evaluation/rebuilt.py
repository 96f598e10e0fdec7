"""What a tokenizer makes of single photos: their tokens as a picture, the reconstruction, what differs, how much.

Shapes: n photos of H × W pixels, N tokens, V codes, Z their width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.contracts import Tokenizer, grid_of, height_width
from rearkit.data.decoding import Decoding
from rearkit.data.photos import read_photo
from rearkit.data.pixels import check_pixels, enlarged, psnr, to_float, to_uint8
from rearkit.errors import RearkitError
from rearkit.evaluation.reconstruction import ssim
from rearkit.tokenization.quality import module_device

GREY = 128


@attrs.frozen(eq=False)
class Rebuilt:
    """A photo and what comes back of it; pictures are (3, H, W) uint8.

    Attributes:
        original: the photo, cut to the tokenizer's size.
        tokens: (N,) int64.
        token_picture: a field for each token in their order, row by row; like codes have like colours.
        reconstruction: the decoded tokens.
        difference: reconstruction less original, halved, around grey.
        psnr: peak signal-to-noise ratio in dB.
        ssim: structural similarity, at most 1.
    """

    original: Tensor
    tokens: Tensor
    token_picture: Tensor
    reconstruction: Tensor
    difference: Tensor
    psnr: float
    ssim: float

    @property
    def pictures(self) -> dict[str, Tensor]:
        """The four pictures by their names."""
        return {
            "original": self.original,
            "tokens": self.token_picture,
            "reconstruction": self.reconstruction,
            "difference": self.difference,
        }


@torch.no_grad()
def reconstruct(
    tokenizer: Tokenizer, photos: Sequence[str | Path] | Tensor, how: Decoding | None = None
) -> list[Rebuilt]:
    """Encode and decode photos, one by one.

    Args:
        tokenizer: frozen, in eval mode, such as the ``tokenizer`` of a model.
        photos: a list of image files, or (n, 3, H, W) uint8.
        how: how files are cut to the tokenizer's size; if None, they are resized to cover it, and the middle is cut.

    Raises:
        RearkitError: there is no such file.
        DataError: a file cannot be used as an image, or a tensor is not uint8.
    """
    if isinstance(photos, str | Path):
        # A text is a sequence too, of letters.
        raise RearkitError(f"reconstruct takes a list of photos; for one, give [{str(photos)!r}]")
    if isinstance(photos, Tensor):
        check_pixels(photos)
    else:
        how = how or Decoding(tokenizer.image_size)
        photos = torch.stack([read_photo(Path(photo), how) for photo in photos])
    colours_V3 = code_colours(tokenizer.codebook().float().cpu())
    found = []
    for original in photos.split(1):
        tokens_1N = tokenizer.encode(to_float(original.to(module_device(tokenizer))))
        rebuilt = to_uint8(tokenizer.decode(tokens_1N)).cpu()
        tokens_N = tokens_1N[0].cpu()
        found.append(
            Rebuilt(
                original[0],
                tokens_N,
                _token_picture(colours_V3[tokens_N], tokenizer),
                rebuilt[0],
                (GREY + (rebuilt[0].float() - original[0].float()) / 2).clamp(0, 255).round().to(torch.uint8),
                psnr(to_float(rebuilt), to_float(original)).item(),
                ssim(rebuilt, original).item(),
            )
        )
    return found


def code_colours(codebook_VZ: Tensor) -> Tensor:
    """Return a colour of each code, (V, 3) uint8, by its rank along the codebook's three main directions."""
    centred = codebook_VZ - codebook_VZ.mean(0)
    # By the covariance, which is small where the codebook is long; the largest eigenvalues come last.
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)
    # A direction and its opposite are as good: the one whose largest part is positive.
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    ranks = (centred @ directions).argsort(0).argsort(0).float()
    colours = (ranks / max(1, len(ranks) - 1) * 255).round().to(torch.uint8)
    return F.pad(colours, (0, 3 - colours.shape[1]))


def _token_picture(colours_N3: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Lay the tokens' colours out as fields, row by row; (3, H, W) uint8, black where fields are left."""
    # Those that have no places of their own are laid out as a square.
    side = math.isqrt(len(colours_N3) - 1) + 1
    rows, columns = grid_of(tokenizer) or (side, side)
    padded = F.pad(colours_N3, (0, 0, 0, rows * columns - len(colours_N3)))
    return enlarged(padded.T.reshape(3, rows, columns), height_width(tokenizer.image_size))
