"""The settings of TiTok."""

from __future__ import annotations

from rearkit import setting, settings

SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads of the published ViTs (published code)."""


@settings
class TiTokSettings:
    """1-D tokenizer: a ViT puts an image into a few tokens without a grid; defaults are the published TiTok-B-64."""

    image_size: int = setting("R, side of the images in pixels", default=256, ge=1)
    patch_size: int = setting("side of the ViTs' patches in pixels; must divide image_size", default=16, ge=1)
    num_tokens: int = setting(
        "N, tokens of an image; 32 (large), 64 (base) and 128 (small) are published", default=64, ge=1
    )
    size: str = setting("width, layers and heads of both ViTs, by name", default="base", choices=tuple(SIZES))
    width: int | None = setting("D of both ViTs; left out: by size", default=None, ge=1)
    num_layers: int | None = setting("blocks of each ViT; left out: by size", default=None, ge=1)
    num_heads: int | None = setting("attention heads; must divide the width; left out: by size", default=None, ge=1)
    codebook_size: int = setting("V, codes", default=4096, ge=2, le=65536)
    embedding_dim: int = setting("Z, width of a code", default=12, ge=1)
    pixel_codebook_size: int = setting("codes that the ViT decoder mixes at each patch", default=1024, ge=1)
    pixel_embedding_dim: int = setting("width of such a code", default=256, ge=1)
    pixel_hidden_channels: int = setting("channels of the pixel decoder at full resolution", default=128, ge=1)
    pixel_channel_mult: tuple[int, ...] = setting(
        "channel factor of each of its levels; each but the first doubles the side, from patches to pixels",
        default=(1, 1, 2, 2, 4),
        ge=1,
        min_len=1,
    )
    pixel_res_blocks: int = setting("residual blocks of each level and of the middle", default=2, ge=1)
    pixel_norm_groups: int = setting("groups of its group norms; must divide every channel count", default=32, ge=1)
    codebook_decay: float = setting("decay of the codebook's moving average, in a fit", default=0.97, ge=0, lt=1)

    def __attrs_post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size ({self.patch_size}) must divide image_size ({self.image_size})")
        # The pixel decoder makes one patch of each position, and each of its levels but one doubles the side.
        if self.patch_size != (factor := 2 ** (len(self.pixel_channel_mult) - 1)):
            raise ValueError(
                f"the {len(self.pixel_channel_mult)} levels of pixel_channel_mult make patches of {factor} pixels, "
                f"but patch_size is {self.patch_size}"
            )
        width, _, heads = self.vit
        if width % heads:
            raise ValueError(f"num_heads ({heads}) must divide the width ({width})")
        for channels in (self.pixel_hidden_channels * mult for mult in self.pixel_channel_mult):
            if channels % self.pixel_norm_groups:
                raise ValueError(
                    f"pixel_norm_groups ({self.pixel_norm_groups}) must divide {channels}, the channels of a level"
                )

    @property
    def vit(self) -> tuple[int, int, int]:
        """Width, layers and heads of both ViTs."""
        width, num_layers, num_heads = SIZES[self.size]
        # A number that is given replaces that of the size; none of them can be 0.
        return self.width or width, self.num_layers or num_layers, self.num_heads or num_heads

    @property
    def grid(self) -> int:
        """Number of patches along a side."""
        return self.image_size // self.patch_size
