"""Encoder and decoder of LlamaGen's tokenizer: those of VQGAN (Esser et al. 2021), attending at the lowest level only.

Shapes: B batch, c channels, y × x any picture, R image side, r grid side, Z' the ``z_channels`` between the halves and
the codes. Parameter names are those of the published checkpoints, which number ``conv_blocks`` in order of use.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class ResBlock(nn.Module):
    """Two 3×3 convolutions, each after a norm and SiLU, around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = None if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, c, y, x) to (B, c', y, x)."""
        out = self.conv1(F.silu(self.norm1(x)))
        out = self.conv2(F.silu(self.norm2(out)))
        return out + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Self-attention of all places of a picture, with one head, around a shortcut."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, (B, c, y, x) to the same shape."""
        normed = self.norm(x)
        # (B, 1, y·x, c): torch's attention expects a dimension of heads.
        q, k, v = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the side by a convolution with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (B, c, y, x) to (B, c, y/2, x/2)."""
        # Padded at the right and at the bottom only, as published.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, (B, c, y, x) to (B, c, 2y, 2x)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention if there is any, then a change of resolution.

    Args:
        channels: of the level's input, then of the output of each residual block.
        groups: of the norms.
        attends: whether attention follows each residual block.
        down: whether the level ends by halving the side.
        up: whether it ends by doubling it.
    """

    def __init__(
        self, channels: Sequence[int], groups: int, *, attends: bool, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(before, after, groups) for before, after in pairwise(channels))
        self.attn = nn.ModuleList(AttnBlock(after, groups) for after in channels[1:] if attends)
        # Two names for one place, as published.
        self.downsample = Downsample(channels[-1]) if down else None
        self.upsample = Upsample(channels[-1]) if up else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the level, (B, c, y, x) to (B, c', y', x')."""
        for index, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        for change in (self.downsample, self.upsample):
            if change is not None:
                x = change(x)
        return x


class Encoder(nn.Module):
    """Images to features, (B, 3, R, R) to (B, Z', r, r).

    Args:
        widths: channels of each level, the full resolution first.
        width_in: channels of the first convolution.
        z_channels: Z'.
        blocks: residual blocks of a level.
        groups: of the norms.
    """

    def __init__(self, widths: Sequence[int], width_in: int, z_channels: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width_in, 3, padding=1)
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            Level([before, *[width] * blocks], groups, attends=i == last, down=i < last)
            for i, (before, width) in enumerate(pairwise((width_in, *widths)))
        )
        self.mid = _middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for layer in (*self.conv_blocks, *self.mid):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Features to images, (B, Z', r, r) to (B, 3, R, R); its levels have one residual block more than the encoder's.

    Args:
        widths: channels of each level, the full resolution first.
        z_channels: Z'.
        blocks: residual blocks of a level of the encoder.
        groups: of the norms.
    """

    def __init__(self, widths: Sequence[int], z_channels: int, blocks: int, groups: int) -> None:
        super().__init__()
        upwards = widths[::-1]
        self.conv_in = nn.Conv2d(z_channels, upwards[0], 3, padding=1)
        self.mid = _middle(upwards[0], groups)
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            Level([before, *[width] * (blocks + 1)], groups, attends=i == 0, up=i < last)
            for i, (before, width) in enumerate(pairwise((upwards[0], *upwards)))
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv_in(x)
        for layer in (*self.mid, *self.conv_blocks):
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _middle(width: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(width, width, groups), AttnBlock(width, groups), ResBlock(width, width, groups)])
