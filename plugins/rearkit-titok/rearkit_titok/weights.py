"""The published layout of TiTok's checkpoints, which is also this package's, and how to read sizes from one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rearkit_titok.settings import SIZES


class TiTokLayout:
    """Recognises published checkpoints; see `rearkit.contracts.PublishedLayout`."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether latent tokens and the pixel codebook are there: no other tokenizer has both."""
        return "latent_tokens" in state and "pixel_quantize.embedding.weight" in state

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict unchanged."""
        return dict(state)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict unchanged."""
        return dict(state)

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings from the shapes, which do not show the number of heads."""
        num_tokens, width = state["latent_tokens"].shape
        num_layers = len({key.split(".")[2] for key in state if key.startswith("encoder.transformer.")})
        named = next((name for name, size in SIZES.items() if size[:2] == (width, num_layers)), None)
        patch_size = state["encoder.patch_embed.weight"].shape[-1]
        levels = sorted({int(key.split(".")[2]) for key in state if key.startswith("pixel_decoder.up.")})
        channels = [state[f"pixel_decoder.up.{i}.block.0.conv1.weight"].shape[0] for i in levels]
        # The shapes show only products of the width and each factor; the greatest common divisor is a width that fits.
        hidden = math.gcd(*channels)
        return {
            "image_size": patch_size * round((len(state["encoder.positional_embedding"]) - 1) ** 0.5),
            "patch_size": patch_size,
            "num_tokens": num_tokens,
            **({"size": named} if named else {"width": width, "num_layers": num_layers}),
            "codebook_size": state["quantize.embedding.weight"].shape[0],
            "embedding_dim": state["quantize.embedding.weight"].shape[1],
            "pixel_codebook_size": state["pixel_quantize.embedding.weight"].shape[0],
            "pixel_embedding_dim": state["pixel_quantize.embedding.weight"].shape[1],
            "pixel_hidden_channels": hidden,
            "pixel_channel_mult": [count // hidden for count in channels],
            "pixel_res_blocks": len({key.split(".")[2] for key in state if key.startswith("pixel_decoder.mid.")}),
        }
