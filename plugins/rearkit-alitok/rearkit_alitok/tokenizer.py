"""AliTok's tokenizer: a transformer encodes an image as prefix and grid tokens, another one decodes them.

Shapes: B batch, R image side, p patch side, g = R/p grid side, N tokens (prefix, then g² in raster order),
T positions of a transformer, W its width, V codes, Z their width. Parameter names are those of the published
checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import VectorQuantizer, setting, settings
from rearkit.contracts import FitPass, FittableTokenizer


@settings
class AliTokSettings:
    """Transformer VQ tokenizer, prefix and grid tokens; defaults are the published ImageNet 256 model (273 tokens)."""

    image_size: int = setting("R, side of the images in pixels; a multiple of patch_size", default=256, ge=1)
    patch_size: int = setting("side in pixels of the patch of a grid token", default=16, ge=1)
    prefix_tokens: int = setting("tokens before those of the grid", default=17, ge=0)
    buffer_tokens: int = setting("further positions of the decoder, without tokens", default=32, ge=0)
    codebook_size: int = setting("V, codes", default=4096, ge=2, le=65536)
    embedding_dim: int = setting("Z, width of a code", default=32, ge=1)
    encoder_width: int = setting("width of the encoder", default=768, ge=1)
    encoder_layers: int = setting("blocks of the encoder", default=12, ge=1)
    encoder_heads: int = setting("attention heads of the encoder; must divide its width", default=12, ge=1)
    decoder_width: int = setting("width of the decoder", default=1024, ge=1)
    decoder_layers: int = setting("blocks of the decoder", default=24, ge=1)
    decoder_heads: int = setting("attention heads of the decoder; must divide its width", default=16, ge=1)
    causal_decoder: bool = setting(
        "draw each patch from its own and earlier tokens only, for a fit as in the paper's first stage; "
        "the published weights are those of the second, where each patch sees all tokens",
        default=False,
    )
    continuous_steps: int = setting(
        "steps at the start of a fit in which the decoder sees features, not codes, until these have some content",
        default=0,
        ge=0,
    )
    commitment: float = setting("weight of the commitment loss, in a fit", default=0.25, ge=0)

    def __attrs_post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        for part in ("encoder", "decoder"):
            width = getattr(self, f"{part}_width")
            heads = getattr(self, f"{part}_heads")
            if width % heads:
                raise ValueError(f"{part}_width ({width}) must be a multiple of {part}_heads ({heads})")

    @property
    def grid(self) -> int:
        """Side of the grid, g."""
        return self.image_size // self.patch_size


class Attention(nn.Module):
    """Self-attention, of each position to all or, if causal, to itself and those before it."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Apply attention, (B, T, W) to (B, T, W)."""
        q, k, v = self.in_proj(x_BTW).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with an exact GELU in between, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Apply both layers, (B, T, W) to (B, T, W)."""
        return self.c_proj(F.gelu(self.c_fc(x_BTW)))


class Block(nn.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x_BTW: Tensor) -> Tensor:
        """Apply the block, (B, T, W) to (B, T, W)."""
        x_BTW = x_BTW + self.attn(self.ln_1(x_BTW))
        return x_BTW + self.mlp(self.ln_2(x_BTW))


def _table(rows: int, width: int) -> nn.Parameter:
    """Return learned vectors, (rows, width), of length 1 on average, as in the published code."""
    return nn.Parameter(torch.randn(rows, width) * width**-0.5)


class Encoder(nn.Module):
    """Images to features: a transformer over the patches, followed by one learned latent for each token."""

    def __init__(self, s: AliTokSettings) -> None:
        super().__init__()
        width = s.encoder_width
        self.patch_embed = nn.Conv2d(3, width, s.patch_size, stride=s.patch_size)
        self.positional_embedding = _table(s.grid**2, width)
        self.latent_token_positional_embedding = _table(s.prefix_tokens + s.grid**2, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, s.encoder_heads, causal=False) for _ in range(s.encoder_layers))
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, s.embedding_dim, 1)

    def forward(self, images_B3RR: Tensor, latents_NW: Tensor) -> Tensor:
        """Encode (B, 3, R, R) in [0, 1], with the latents (N, W), to features (B, N, Z)."""
        patches_BMW = self.patch_embed(images_B3RR).flatten(2).transpose(1, 2) + self.positional_embedding
        latents_BNW = (latents_NW + self.latent_token_positional_embedding).expand(len(images_B3RR), -1, -1)
        x_BTW = self.ln_pre(torch.cat([patches_BMW, latents_BNW], dim=1))
        for block in self.transformer:
            x_BTW = block(x_BTW)
        latents_BNW = self.ln_post(x_BTW[:, patches_BMW.shape[1] :])
        # A 1×1 convolution, as published, so that the weights keep their shape; hence the extra dimension.
        return self.conv_out(latents_BNW.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)


class Decoder(nn.Module):
    """Code vectors to images: the positions of the grid's tokens, after buffer and prefix, each give a patch."""

    def __init__(self, s: AliTokSettings) -> None:
        super().__init__()
        width = s.decoder_width
        self.grid = s.grid
        self.patch_size = s.patch_size
        self.decoder_embed = nn.Linear(s.embedding_dim, width)
        self.class_embedding = _table(s.buffer_tokens, width)
        self.latent_token_positional_embedding = _table(s.buffer_tokens + s.prefix_tokens + s.grid**2, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            Block(width, s.decoder_heads, s.causal_decoder) for _ in range(s.decoder_layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.ModuleList([nn.Conv2d(width, 3 * s.patch_size**2, 1)])
        self.conv_out = nn.Conv2d(3, 3, 1)

    def forward(self, codes_BNZ: Tensor) -> Tensor:
        """Decode (B, N, Z) to images (B, 3, R, R) in [0, 1]."""
        buffer_BMW = self.class_embedding.expand(len(codes_BNZ), -1, -1)
        x_BTW = torch.cat([buffer_BMW, self.decoder_embed(codes_BNZ)], dim=1)
        x_BTW = self.ln_pre(x_BTW + self.latent_token_positional_embedding)
        for block in self.transformer:
            x_BTW = block(x_BTW)
        grid_BWgg = self.ln_post(x_BTW[:, -(self.grid**2) :]).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        # A patch's numbers are ordered by row, column, colour; pixel_shuffle expects colour, row, column.
        patches = self.ffn[0](grid_BWgg).unflatten(1, (-1, 3)).transpose(1, 2).flatten(1, 2)
        return self.conv_out(F.pixel_shuffle(patches, self.patch_size)).sigmoid()


class AliTok(FittableTokenizer):
    """The tokenizer; see `rearkit.contracts.FittableTokenizer`."""

    fit_steps: Tensor

    def __init__(self, settings: AliTokSettings) -> None:
        super().__init__()
        self.image_size = settings.image_size
        self.num_tokens = settings.prefix_tokens + settings.grid**2
        self.codebook_size = settings.codebook_size
        self.embedding_dim = settings.embedding_dim
        self.commitment = settings.commitment
        self.continuous_steps = settings.continuous_steps
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings)
        self.latent_tokens = _table(self.num_tokens, settings.encoder_width)
        self.quantize = VectorQuantizer(settings.codebook_size, settings.embedding_dim)
        # Only a fit needs it, so it is not part of the weights.
        self.register_buffer("fit_steps", torch.zeros(()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published at width 768, with a deviation of 0.02; narrower layers get more, to keep the scale.

        Unlike in the published code, encoder and decoder start as described in `start_from_patches`.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02 * (768 / module.weight[0].numel()) ** 0.5)
                nn.init.zeros_(module.bias)
        start_from_patches(self)

    def features(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) in [0, 1] to features (B, N, Z), not yet quantized."""
        features_BNZ: Tensor = self.encoder(images_B3RR, self.latent_tokens)
        return features_BNZ

    def encode(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) float32 in [0, 1] to tokens, (B, N) int64: prefix, then the grid in raster order."""
        return self.quantize.nearest(self.features(images_B3RR))

    def decode(self, tokens_BN: Tensor) -> Tensor:
        """Decode tokens, (B, N) int64, to (B, 3, R, R) float32 in [0, 1]."""
        images_B3RR: Tensor = self.decoder(self.codebook()[tokens_BN])
        return images_B3RR

    def codebook(self) -> Tensor:
        """Return the codebook, (V, Z) float32."""
        return self.quantize.codebook()

    def fit_pass(self, images_B3RR: Tensor) -> FitPass:
        """Take reconstruction error (mean squared plus mean absolute) plus commitment; averages move the codebook.

        The published training adds a perceptual and a GAN loss, as ``[tokenizer.fit]`` can.
        """
        features_BNZ = self.features(images_B3RR).float()
        self.fit_steps += 1
        last = self.decoder.conv_out.weight
        if self.fit_steps <= self.continuous_steps:
            drawn_B3RR = self.decoder(features_BNZ).float()
            error = _error(drawn_B3RR, images_B3RR)
            return FitPass(error, {"reconstruction": error}, drawn_B3RR, last)
        codes_BNZ, tokens_BN = self.quantize(features_BNZ)
        drawn_B3RR = self.decoder(codes_BNZ).float()
        error = _error(drawn_B3RR, images_B3RR)
        commitment = F.mse_loss(features_BNZ, self.codebook()[tokens_BN].detach())
        parts = {"reconstruction": error, "commitment": commitment, "codes_used": self.quantize.share_used(tokens_BN)}
        return FitPass(error + self.commitment * commitment, parts, drawn_B3RR, last)

    def decoder_modules(self) -> Sequence[nn.Module]:
        """Return the decoder, unless the first steps are to do without codes."""
        return () if self.continuous_steps else (self.decoder,)


def _error(drawn_B3RR: Tensor, images_B3RR: Tensor) -> Tensor:
    return F.mse_loss(drawn_B3RR, images_B3RR) + F.l1_loss(drawn_B3RR, images_B3RR)


@torch.no_grad()
def start_from_patches(tokenizer: AliTok) -> None:
    """Let each grid token start as a random projection of its own patch, from which a fit continues.

    From random weights, a fit first learns the mean image and then, for long, nothing else, since the latents hardly
    read the patches. So channels have roles at the start: the first quarter holds the position of a patch, the second
    that of a latent, the rest content. The first block's queries read the second and its keys the first, through the
    same matrix, and its values are the content, so that each latent reads its own patch; the features consist of
    content alone. The decoder separates position and content likewise. Training is free to change all of it.
    """
    encoder = tokenizer.encoder
    decoder = tokenizer.decoder
    width = encoder.positional_embedding.shape[1]
    patches = len(encoder.positional_embedding)
    quarter = width // 4
    half = width // 4 * 2
    place_MW = torch.zeros_like(encoder.positional_embedding)
    place_MW[:, :quarter] = encoder.positional_embedding[:, :quarter]
    encoder.positional_embedding.copy_(place_MW)
    tokenizer.latent_tokens.zero_()
    latents_NW = encoder.latent_token_positional_embedding
    latents_NW[:, :quarter] = 0
    latents_NW[:, half:] = 0
    # A grid latent gets its patch's position, in the latents' quarter; prefix latents keep a random one.
    latents_NW[-patches:] = place_MW.roll(quarter, 1)
    encoder.patch_embed.weight[:half] = 0
    attention = encoder.transformer[0].attn
    assert isinstance(attention, Attention)
    query, key, value = attention.in_proj.weight.chunk(3)
    nn.init.normal_(query, std=2 * width**-0.5)
    query[:, :quarter] = 0
    query[:, half:] = 0
    # The same matrix, a quarter to the left: it reads patch positions as the queries read those of latents.
    key.copy_(query.roll(-quarter, 1))
    content = torch.eye(width)
    content[:half] = 0
    value.copy_(content)
    # Handed on unchanged, so that content stays in its channels.
    attention.out_proj.weight.copy_(torch.eye(width))
    encoder.conv_out.weight[:, :half] = 0
    half = decoder.class_embedding.shape[1] // 2
    decoder.decoder_embed.weight[:half] = 0
    decoder.latent_token_positional_embedding[:, half:] = 0
