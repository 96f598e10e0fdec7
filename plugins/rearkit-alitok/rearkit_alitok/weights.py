"""The published layouts of AliTok's tokenizer and generator, which are rearkit's own, and what sizes weights have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class _SameLayout:
    """Published under the very names that our modules have."""

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return it as it is."""
        return dict(state)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return it as it is."""
        return dict(state)


class AliTokLayout(_SameLayout):
    """The tokenizer's; see `rearkit.contracts.PublishedLayout`."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Tell by the latents and by a decoder without mask token, which sets it apart from TiTok's."""
        needed = ("latent_tokens", "decoder.class_embedding", "decoder.conv_out.weight", "quantize.embedding.weight")
        return all(key in state for key in needed) and "decoder.mask_token" not in state

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings off the shapes; heads leave no trace there."""
        patch_size = state["encoder.patch_embed.weight"].shape[-1]
        patches, encoder_width = state["encoder.positional_embedding"].shape
        buffer_tokens, decoder_width = state["decoder.class_embedding"].shape
        codebook_size, embedding_dim = state["quantize.embedding.weight"].shape
        return {
            "image_size": round(patches**0.5) * patch_size,
            "patch_size": patch_size,
            "prefix_tokens": state["latent_tokens"].shape[0] - patches,
            "buffer_tokens": buffer_tokens,
            "codebook_size": codebook_size,
            "embedding_dim": embedding_dim,
            "encoder_width": encoder_width,
            "encoder_layers": _blocks(state, "encoder.transformer."),
            "decoder_width": decoder_width,
            "decoder_layers": _blocks(state, "decoder.transformer."),
        }


class AliTokARLayout(_SameLayout):
    """The generator's; see `rearkit.contracts.PublishedLayout`."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Tell by the gated MLPs and the normalised queries."""
        needed = ("embeddings.weight", "output.weight", "blocks.0.mlp.w3.weight", "blocks.0.attn.q_norm.weight")
        return all(key in state for key in needed)

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings off the shapes; prefix tokens leave no trace there."""
        hidden_size = state["embeddings.weight"].shape[1]
        return {
            "hidden_size": hidden_size,
            "num_layers": _blocks(state, "blocks."),
            "num_heads": hidden_size // state["blocks.0.attn.q_norm.weight"].shape[0],
        }


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
