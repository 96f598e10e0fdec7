"""The two ViTs of TiTok: one encodes an image as latent tokens, the other decodes the image from them.

Shapes: B batch, R image side, g patches along a side, G = g² patches, N latent tokens, D width, Z width of a code.
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from rearkit import joined
from rearkit_titok.settings import TiTokSettings


class Block(nn.Module):
    """Pre-norm attention, then a GELU MLP of four times the width."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=nn.GELU(), c_proj=nn.Linear(4 * width, width))
        )
        # For a fit: as torch initialises it, attention starts as a weak mean over all positions, and what distinguishes
        # images and positions takes hundreds of steps to get through.
        with torch.no_grad():
            self.attn.in_proj_weight[: 2 * width].mul_(3)
            self.attn.in_proj_weight[2 * width :].mul_(2)
            self.attn.out_proj.weight.mul_(2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply the block, (B, T, D) to (B, T, D); every position sees every position."""
        normed = self.ln_1(x_BTD)
        x_BTD = x_BTD + self.attn(normed, normed, normed, need_weights=False)[0]
        return x_BTD + self.mlp(self.ln_2(x_BTD))


class ViT(nn.Module):
    """What both ViTs share: a transformer over [class, G patches, N latent tokens], with learned positions."""

    def __init__(self, s: TiTokSettings) -> None:
        super().__init__()
        width, num_layers, num_heads = s.vit
        self.num_patches = s.grid**2
        self.num_tokens = s.num_tokens

        def table(rows: int) -> nn.Parameter:
            return nn.Parameter(width**-0.5 * torch.randn(rows, width))

        self.class_embedding = table(1)
        self.positional_embedding = table(1 + self.num_patches)
        self.latent_token_positional_embedding = table(s.num_tokens)
        self.ln_pre = nn.LayerNorm(width)
        self.ln_post = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))

    def transform(self, patches_BGD: Tensor, latents_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformer's outputs for the patches, (B, G, D), and for the latent tokens, (B, N, D)."""
        class_B1D = self.class_embedding.expand(len(patches_BGD), -1, -1)
        image = torch.cat([class_B1D, patches_BGD], dim=1) + self.positional_embedding
        x_BTD = self.ln_pre(torch.cat([image, latents_BND + self.latent_token_positional_embedding], dim=1))
        for block in self.transformer:
            x_BTD = block(x_BTD)
        return x_BTD[:, 1 : -self.num_tokens], x_BTD[:, -self.num_tokens :]


class Encoder(ViT):
    """Images to features, one vector for each latent token."""

    def __init__(self, s: TiTokSettings) -> None:
        super().__init__(s)
        width = s.vit[0]
        self.patch_embed = nn.Conv2d(3, width, s.patch_size, stride=s.patch_size)
        self.conv_out = nn.Conv2d(width, s.embedding_dim, 1)

    def forward(self, images_B3RR: Tensor, latent_tokens_ND: Tensor) -> Tensor:
        """Encode (B, 3, R, R) in [0, 1], with the latent tokens (N, D), to (B, Z, 1, N)."""
        features: Tensor = self.conv_out(self._latents(images_B3RR, latent_tokens_ND)).transpose(2, 3)
        return features

    def _latents(self, images_B3RR: Tensor, latent_tokens_ND: Tensor) -> Tensor:
        """Return the input of `conv_out`, (B, D, N, 1)."""
        patches_BGD = self.patch_embed(images_B3RR).flatten(2).transpose(1, 2)
        _, latents_BND = self.transform(patches_BGD, latent_tokens_ND.expand(len(images_B3RR), -1, -1))
        # (B, N, D) is reshaped to (B, D, N) without a transpose: a quirk on which the published weights depend.
        return self.ln_post(latents_BND).reshape(len(images_B3RR), -1, self.num_tokens, 1)

    @torch.no_grad()
    def aim(self, images_B3RR: Tensor, latent_tokens_ND: Tensor) -> None:
        """Set a fresh `conv_out` to the directions in which images differ most, relative to what they share.

        An untrained ViT gives nearly the same output for every image, so that all images would get the same tokens. The
        directions solve the generalised eigenproblem of the two covariances, as in Fisher's linear discriminant.
        """
        # Of all ranks' images, so that they all get the same layer. In float64, since the matrices below are nearly
        # singular.
        latents_BDN = joined(self._latents(images_B3RR, latent_tokens_ND).squeeze(3)).double()
        shared_DN = latents_BDN.mean(0)
        own_DM = (latents_BDN - shared_DN).permute(1, 0, 2).flatten(1)
        identity_DD = torch.eye(len(shared_DN)).to(shared_DN)
        values_D, vectors_DD = torch.linalg.eigh(shared_DN @ shared_DN.T + 1e-3 * identity_DD)
        # In these coordinates the shared covariance is the identity, so that a plain eigenproblem remains.
        whiten_DD = vectors_DD * values_D.rsqrt()
        _, turns_DD = torch.linalg.eigh(whiten_DD.T @ own_DM @ own_DM.T @ whiten_DD)
        # eigh sorts its values upwards; the strongest directions are wanted first.
        directions_DD = (whiten_DD @ turns_DD).flip(1)
        width = self.conv_out.out_channels
        # Repeated from the start where a code is wider than there are directions.
        directions_DZ = directions_DD[:, torch.arange(width) % len(directions_DD)]
        # Each feature gets the same deviation, so that none dominates the distances to codes.
        scale_Z = (directions_DZ.T @ own_DM).square().mean(1).sqrt().clamp(min=1e-6)
        weight = (directions_DZ / scale_Z).T[:, :, None, None]
        self.conv_out.load_state_dict({"weight": weight, "bias": weight.new_zeros(width)})


class Decoder(ViT):
    """Code vectors to logits over the pixel decoder's codes, for each patch."""

    def __init__(self, s: TiTokSettings) -> None:
        super().__init__(s)
        width = s.vit[0]
        self.grid = s.grid
        self.decoder_embed = nn.Linear(s.embedding_dim, width)
        self.mask_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        self.ffn = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, s.pixel_codebook_size, 1)
        )

    def forward(self, codes_BNZ: Tensor) -> Tensor:
        """Decode (B, N, Z) to logits (B, pixel codes, g, g)."""
        masks_BGD = self.mask_token.expand(len(codes_BNZ), self.num_patches, -1)
        patches_BGD, _ = self.transform(masks_BGD, self.decoder_embed(codes_BNZ))
        logits: Tensor = self.ffn(self.ln_post(patches_BGD).transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        return logits
