"""LlamaGen's tokenizer (arXiv 2406.06525, section 2.1): a VQGAN with many narrow codes of length 1.

Shapes: B batch, R image side, r = R / 2^(levels-1) grid side, N = r² tokens in raster order, V codes, Z their width,
Z' the ``z_channels``. Images that are no squares have height × width in the place of R × R, and rows × columns in that
of r × r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import VectorQuantizer, setting, settings
from rearkit.contracts import FitPass, FittableTokenizer, ImageSize, height_width, size_text
from rearkit_llamagen.convolutions import Decoder, Encoder


@settings
class LlamaGenVQSettings:
    """Convolutional VQ tokenizer on a grid; defaults are VQ-16 at 256 × 256. VQ-8 has levels (1, 2, 2, 4)."""

    image_size: ImageSize = setting(
        "R, side of the images in pixels; for sampling also [height, width]", default=256, ge=1
    )
    hidden_channels: int = setting("channels at full resolution", default=128, ge=1)
    channel_mult: tuple[int, ...] = setting(
        "channel factor of each level; each level but the last halves the side",
        default=(1, 1, 2, 2, 4),
        ge=1,
        min_len=1,
    )
    num_res_blocks: int = setting("residual blocks of each level; the decoder has one more", default=2, ge=1)
    z_channels: int = setting("channels that encoder and decoder have at the codes' end", default=256, ge=1)
    norm_groups: int = setting("groups of the group norms; must divide every channel count", default=32, ge=1)
    codebook_size: int = setting("V, codes", default=16384, ge=2, le=65536)
    embedding_dim: int = setting("Z, width of a code", default=8, ge=1)
    l2_normalised: bool = setting("whether features and codes are scaled to length 1", default=True)
    commitment: float = setting("weight of the commitment loss, in a fit", default=0.25, ge=0)
    codebook_decay: float = setting("decay of the codebook's moving average, in a fit", default=0.97, ge=0, lt=1)

    def __attrs_post_init__(self) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if any(side % factor for side in height_width(self.image_size)):
            size = size_text(self.image_size)
            raise ValueError(f"image_size ({size}) must be a multiple of {factor}, the down-sampling")
        for channels in (self.hidden_channels, *self.widths):
            if channels % self.norm_groups:
                raise ValueError(f"norm_groups ({self.norm_groups}) must divide {channels}, the channels of a level")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the full resolution first."""
        return [self.hidden_channels * factor for factor in self.channel_mult]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        height, width = height_width(self.image_size)
        factor = 2 ** (len(self.channel_mult) - 1)
        return height // factor, width // factor


class LlamaGenVQ(FittableTokenizer):
    """The tokenizer; see `rearkit.contracts.FittableTokenizer`."""

    raster = True

    def __init__(self, settings: LlamaGenVQSettings) -> None:
        super().__init__()
        self.image_size = settings.image_size
        self.codebook_size = settings.codebook_size
        self.embedding_dim = settings.embedding_dim
        self.grid = settings.grid
        self.num_tokens = math.prod(settings.grid)
        self.commitment = settings.commitment
        rest = (settings.z_channels, settings.num_res_blocks, settings.norm_groups)
        self.encoder = Encoder(settings.widths, settings.hidden_channels, *rest)
        self.decoder = Decoder(settings.widths, *rest)
        self.quantize = VectorQuantizer(
            settings.codebook_size, settings.embedding_dim, settings.codebook_decay, normalised=settings.l2_normalised
        )
        self.quant_conv = nn.Conv2d(settings.z_channels, settings.embedding_dim, 1)
        self.post_quant_conv = nn.Conv2d(settings.embedding_dim, settings.z_channels, 1)

    def features(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) in [0, 1] to features (B, Z, r, r), neither scaled nor quantized."""
        features_BZrr: Tensor = self.quant_conv(self.encoder(2 * images_B3RR - 1))
        return features_BZrr

    def draw(self, codes_BNZ: Tensor) -> Tensor:
        """Decode code vectors (B, N, Z) to (B, 3, R, R) in [-1, 1], not clamped."""
        codes_BZrr = codes_BNZ.transpose(1, 2).unflatten(2, self.grid)
        images_B3RR: Tensor = self.decoder(self.post_quant_conv(codes_BZrr))
        return images_B3RR

    def encode(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) float32 in [0, 1] to tokens, (B, N) int64 in raster order."""
        return self.quantize.nearest(_in_raster_order(self.features(images_B3RR)))

    def decode(self, tokens_BN: Tensor) -> Tensor:
        """Decode tokens, (B, N) int64, to (B, 3, R, R) float32, clamped to [0, 1]."""
        return ((self.draw(self.codebook()[tokens_BN]) + 1) / 2).clamp(0, 1)

    def codebook(self) -> Tensor:
        """Return the codebook, (V, Z) float32, every row of length 1 if codes are normalised."""
        return self.quantize.codebook()

    def fit_pass(self, images_B3RR: Tensor) -> FitPass:
        """Take reconstruction error (mean squared plus mean absolute) plus commitment; averages move the codebook.

        The published training learns the codebook by gradients, and adds a perceptual and a GAN loss, as
        ``[tokenizer.fit]`` can.
        """
        features_BNZ = _in_raster_order(self.features(images_B3RR)).float()
        codes_BNZ, tokens_BN = self.quantize(features_BNZ)
        drawn_B3RR = (self.draw(codes_BNZ).float() + 1) / 2
        error = F.mse_loss(drawn_B3RR, images_B3RR) + F.l1_loss(drawn_B3RR, images_B3RR)
        commitment = F.mse_loss(self.quantize.scaled(features_BNZ), self.codebook()[tokens_BN].detach())
        parts = {"reconstruction": error, "commitment": commitment, "codes_used": self.quantize.share_used(tokens_BN)}
        return FitPass(error + self.commitment * commitment, parts, drawn_B3RR, self.decoder.conv_out.weight)

    def decoder_modules(self) -> Sequence[nn.Module]:
        """Return the decoder and the layer before it."""
        return (self.post_quant_conv, self.decoder)


def _in_raster_order(features_BZrr: Tensor) -> Tensor:
    """Reshape (B, Z, r, r) to (B, r², Z)."""
    return features_BZrr.flatten(2).transpose(1, 2)
