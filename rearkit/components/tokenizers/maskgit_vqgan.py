"""The MaskGIT VQGAN: convolutional encoder and decoder around a vector quantizer on a grid.

Shapes: B batch, R image side, r = R / 2^(levels-1) grid side, N = r² tokens in raster order, V codes, Z their width.
Images that are no squares have height × width in the place of R × R, and rows × columns in that of r × r.
Parameter names are those of the published checkpoints. Two details differ from the usual VQGAN and change results: in
a block that changes the width, the shortcut reads the block's output, not its input; down-sampling is a mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.components.tokenizers.quantizer import VectorQuantizer
from rearkit.contracts import FitPass, FittableTokenizer, ImageSize, height_width, size_text
from rearkit.recipe.settings import setting, settings


@settings
class MaskGITVQGANSettings:
    """Convolutional VQ tokenizer on a square grid; defaults are the published ImageNet 256 model (16×, 1024 codes)."""

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
    num_res_blocks: int = setting("residual blocks of each level and of the middle", default=2, ge=1, le=100)
    norm_groups: int = setting("groups of the group norms; must divide every channel count", default=32, ge=1)
    codebook_size: int = setting("V, codes", default=1024, ge=2, le=65536)
    embedding_dim: int = setting("Z, width of a code", default=256, ge=1)
    commitment: float = setting("weight of the commitment loss, in a fit", default=0.25, ge=0)
    codebook_decay: float = setting("decay of the codebook's moving average, in a fit", default=0.97, ge=0, lt=1)
    l2_normalised: bool = setting("scale features and codes to length 1", default=False, since="0.2.0")
    entropy: float = setting(
        "weight of the term that makes features decided and codes evenly used, in a fit",
        default=0.0,
        ge=0,
        since="0.2.0",
    )
    entropy_temperature: float = setting("of its softmax over codes", default=0.1, gt=0, since="0.2.0")

    def __attrs_post_init__(self) -> None:
        factor = 2 ** (len(self.channel_mult) - 1)
        if any(side % factor for side in height_width(self.image_size)):
            size = size_text(self.image_size)
            raise ValueError(f"image_size ({size}) must be a multiple of {factor}, the down-sampling")
        for channels in (self.hidden_channels * mult for mult in (1, *self.channel_mult)):
            if channels % self.norm_groups:
                raise ValueError(f"norm_groups ({self.norm_groups}) must divide {channels}, the channels of a level")


class ResnetBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        # It reads the output, hence channels_out twice; see the module docstring.
        self.nin_shortcut = (
            None if channels_in == channels_out else nn.Conv2d(channels_out, channels_out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, in, h, w) to (B, out, h, w)."""
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        return out + (x if self.nin_shortcut is None else self.nin_shortcut(out))


class Level(nn.Module):
    """The residual blocks of one resolution, and the change of resolution after them."""

    def __init__(
        self, channels_in: int, channels_out: int, blocks: int, groups: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(channels_in if index == 0 else channels_out, channels_out, groups) for index in range(blocks)
        )
        self.down = down
        self.upsample_conv = nn.Conv2d(channels_out, channels_out, 3, padding=1) if up else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the level, (B, in, h, w) to (B, out, h', w')."""
        for block in self.block:
            x = block(x)
        if self.down:
            x = F.avg_pool2d(x, 2)
        if self.upsample_conv is not None:
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    """Images to features, (B, 3, R, R) to (B, Z, r, r)."""

    def __init__(self, s: MaskGITVQGANSettings) -> None:
        super().__init__()
        widths = [s.hidden_channels * mult for mult in (1, *s.channel_mult)]
        last = len(s.channel_mult) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], s.num_res_blocks, s.norm_groups, down=i < last)
            for i in range(len(s.channel_mult))
        )
        self.mid = nn.ModuleList(ResnetBlock(widths[-1], widths[-1], s.norm_groups) for _ in range(s.num_res_blocks))
        self.norm_out = nn.GroupNorm(s.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], s.embedding_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for layer in (*self.down, *self.mid):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITVQGANDecoder(nn.Module):
    """Code embeddings to images, (B, Z, r, r) to (B, 3, R, R), not clamped; other tokenizers can use it too.

    Args:
        embedding_dim: Z.
        hidden_channels: channels at full resolution.
        channel_mult: channel factor of each level; each level but the first doubles the side, so R = r · 2^(levels-1).
        num_res_blocks: residual blocks of each level and of the middle.
        norm_groups: groups of the group norms; must divide every channel count.
    """

    def __init__(
        self,
        embedding_dim: int,
        hidden_channels: int,
        channel_mult: Sequence[int],
        num_res_blocks: int,
        norm_groups: int,
    ) -> None:
        super().__init__()
        widths = [hidden_channels * mult for mult in channel_mult]
        self.conv_in = nn.Conv2d(embedding_dim, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(ResnetBlock(widths[-1], widths[-1], norm_groups) for _ in range(num_res_blocks))
        # Level 0 is the full resolution and comes last, as in the published names.
        self.up = nn.ModuleList(
            Level(widths[min(i + 1, len(widths) - 1)], widths[i], num_res_blocks, norm_groups, up=i > 0)
            for i in range(len(widths))
        )
        self.norm_out = nn.GroupNorm(norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for layer in (*self.mid, *reversed(self.up)):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITVQGAN(FittableTokenizer):
    """The tokenizer; see `rearkit.contracts.FittableTokenizer`."""

    raster = True

    def __init__(self, settings: MaskGITVQGANSettings) -> None:
        super().__init__()
        self.image_size = settings.image_size
        self.codebook_size = settings.codebook_size
        self.embedding_dim = settings.embedding_dim
        rows, columns = (side // 2 ** (len(settings.channel_mult) - 1) for side in height_width(settings.image_size))
        self.grid = (rows, columns)
        self.num_tokens = rows * columns
        self.commitment = settings.commitment
        self.entropy, self.entropy_temperature = settings.entropy, settings.entropy_temperature
        self.encoder = Encoder(settings)
        self.decoder = MaskGITVQGANDecoder(
            settings.embedding_dim,
            settings.hidden_channels,
            settings.channel_mult,
            settings.num_res_blocks,
            settings.norm_groups,
        )
        self.quantize = VectorQuantizer(
            settings.codebook_size, settings.embedding_dim, settings.codebook_decay, settings.l2_normalised
        )

    def features(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) in [0, 1] to features (B, Z, r, r), not yet quantized."""
        features: Tensor = self.encoder(images_B3RR)
        return features

    def encode(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) float32 in [0, 1] to tokens, (B, N) int64 in raster order."""
        return self.quantize.nearest(_grid_to_tokens(self.features(images_B3RR)))

    def decode(self, tokens_BN: Tensor) -> Tensor:
        """Decode tokens, (B, N) int64, to (B, 3, R, R) float32, clamped to [0, 1]."""
        return self.decoder(self._tokens_to_grid(self.codebook()[tokens_BN])).clamp(0, 1)

    def codebook(self) -> Tensor:
        """Return the codebook, (V, Z) float32."""
        return self.quantize.codebook()

    def fit_pass(self, images_B3RR: Tensor) -> FitPass:
        """Take reconstruction error (mean squared plus mean absolute) plus commitment; averages move the codebook."""
        features_BNZ = _grid_to_tokens(self.features(images_B3RR)).float()
        # Convolutions without biases keep a black image zero, and each norm of zeros multiplies its gradient by a
        # thousand; without it, the others' fit the encoder.
        black_B = images_B3RR.flatten(1).amax(1) == 0
        features_BNZ = torch.where(black_B[:, None, None], features_BNZ.detach(), features_BNZ)
        codes_BNZ, tokens_BN = self.quantize(features_BNZ)
        rebuilt = self.decoder(self._tokens_to_grid(codes_BNZ)).float()
        error = F.mse_loss(rebuilt, images_B3RR) + F.l1_loss(rebuilt, images_B3RR)
        # Pulls features to codes only: the codes follow by moving averages, without gradients.
        commitment = F.mse_loss(self.quantize.scaled(features_BNZ), self.codebook()[tokens_BN].detach())
        parts = {"reconstruction": error, "commitment": commitment, "codes_used": self.quantize.share_used(tokens_BN)}
        loss = error + self.commitment * commitment
        if self.entropy:
            parts["entropy"] = self.quantize.entropy_penalty(features_BNZ, self.entropy_temperature)
            loss = loss + self.entropy * parts["entropy"]
        return FitPass(loss, parts, rebuilt, self.decoder.conv_out.weight)

    def decoder_modules(self) -> Sequence[nn.Module]:
        """Return the decoder."""
        return (self.decoder,)

    def _tokens_to_grid(self, codes_BNZ: Tensor) -> Tensor:
        return codes_BNZ.transpose(1, 2).unflatten(2, self.grid)


def _grid_to_tokens(features_BZrr: Tensor) -> Tensor:
    """Reshape (B, Z, r, r) to (B, r², Z)."""
    return features_BZrr.flatten(2).transpose(1, 2)
