"""TiTok (Yu et al. 2024, "An image is worth 32 tokens for reconstruction and generation"): tokens without a grid.

Shapes: B batch, R image side, g patches along a side, N tokens, V codes, Z their width, K pixel codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import MaskGITVQGANDecoder, VectorQuantizer
from rearkit.contracts import FitPass, FittableTokenizer
from rearkit_titok.settings import TiTokSettings
from rearkit_titok.vit import Decoder, Encoder


class TiTok(FittableTokenizer):
    """The tokenizer; see `rearkit.contracts.FittableTokenizer`."""

    aimed: Tensor

    def __init__(self, settings: TiTokSettings) -> None:
        super().__init__()
        self.image_size = settings.image_size
        self.num_tokens = settings.num_tokens
        self.codebook_size = settings.codebook_size
        self.embedding_dim = settings.embedding_dim
        width = settings.vit[0]
        self.latent_tokens = nn.Parameter(width**-0.5 * torch.randn(settings.num_tokens, width))
        self.encoder = Encoder(settings)
        self.quantize = VectorQuantizer(
            settings.codebook_size, settings.embedding_dim, settings.codebook_decay, normalised=True
        )
        # Not part of the weights: only a fit needs it, and its checkpoint saves it.
        self.register_buffer("aimed", torch.tensor(False), persistent=False)
        self.decoder = Decoder(settings)
        # A dict around a single embedding, for the published name pixel_quantize.embedding.weight.
        self.pixel_quantize = nn.ModuleDict(
            {"embedding": nn.Embedding(settings.pixel_codebook_size, settings.pixel_embedding_dim)}
        )
        self.pixel_decoder = MaskGITVQGANDecoder(
            settings.pixel_embedding_dim,
            settings.pixel_hidden_channels,
            settings.pixel_channel_mult,
            settings.pixel_res_blocks,
            settings.pixel_norm_groups,
        )

    def encode(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) float32 in [0, 1] to tokens, (B, N) int64."""
        return self.quantize.nearest(self.features(images_B3RR)[:, :, 0].transpose(1, 2))

    def decode(self, tokens_BN: Tensor) -> Tensor:
        """Decode tokens, (B, N) int64, to (B, 3, R, R) float32, clamped to [0, 1]."""
        return self.paint(self.pixel_logits(self.codebook()[tokens_BN])).clamp(0, 1)

    def codebook(self) -> Tensor:
        """Return the codebook, (V, Z) float32, every row of length 1."""
        return self.quantize.codebook()

    def features(self, images_B3RR: Tensor) -> Tensor:
        """Encode (B, 3, R, R) in [0, 1] to features (B, Z, 1, N), neither scaled nor quantized."""
        features: Tensor = self.encoder(images_B3RR, self.latent_tokens)
        return features

    def pixel_logits(self, codes_BNZ: Tensor) -> Tensor:
        """Decode (B, N, Z) code vectors to logits over the pixel codes, (B, K, g, g)."""
        logits: Tensor = self.decoder(codes_BNZ)
        return logits

    def paint(self, logits_BKgg: Tensor) -> Tensor:
        """Decode (B, K, g, g) logits to (B, 3, R, R), not clamped, from each patch's softmax-weighted mean code."""
        weights_BKgg = logits_BKgg.softmax(dim=1)
        mixed = torch.einsum("bkhw,kz->bzhw", weights_BKgg, self.pixel_quantize["embedding"].weight)
        image: Tensor = self.pixel_decoder(mixed)
        return image

    def fit_pass(self, images_B3RR: Tensor) -> FitPass:
        """Fit codebook and decoder to a random encoder: mean squared plus mean absolute error of the reconstruction.

        The encoder keeps its weights; if they were not loaded, the first batch sets its last layer (`Encoder.aim`).
        Trained on reconstruction, it soon gave the same features for all images (tried at the sizes of mnist.toml). The
        published training differs: first everything by cross-entropy to the codes of a trained MaskGIT VQGAN, then the
        decoder with a perceptual loss and a GAN, which ``[tokenizer.fit]`` can add.
        """
        if not self.aimed:
            self.encoder.aim(images_B3RR, self.latent_tokens)
            self.aimed.fill_(True)
        with torch.no_grad():
            codes_BNZ, tokens_BN = self.quantize(self.features(images_B3RR)[:, :, 0].transpose(1, 2))
        reconstruction = self.paint(self.pixel_logits(codes_BNZ)).float()
        squared = F.mse_loss(reconstruction, images_B3RR)
        absolute = F.l1_loss(reconstruction, images_B3RR)
        parts = {"squared": squared, "absolute": absolute, "codes_used": self.quantize.share_used(tokens_BN)}
        return FitPass(squared + absolute, parts, reconstruction, self.pixel_decoder.conv_out.weight)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load weights; a fit goes on from their encoder, which has its directions already."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}encoder.conv_out.weight" in state_dict:
            self.aimed.fill_(True)

    def decoder_modules(self) -> Sequence[nn.Module]:
        """Return the two halves of the way back: to pixel codes, and to pixels."""
        return (self.decoder, self.pixel_decoder)
