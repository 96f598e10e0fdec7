"""The published layouts of AliTok's tokenizer and generator, which are also rearkit's, and how to read sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class _SameLayout:
    """A published layout with the same names as our modules."""

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict unchanged."""
        return dict(state)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict unchanged."""
        return dict(state)


class AliTokLayout(_SameLayout):
    """The tokenizer's layout; see `rearkit.contracts.PublishedLayout`."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the latents are there, and a decoder without TiTok's mask token."""
        needed = ("latent_tokens", "decoder.class_embedding", "decoder.conv_out.weight", "quantize.embedding.weight")
        return all(key in state for key in needed) and "decoder.mask_token" not in state

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings from the shapes, which do not show the number of heads."""
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
    """The generator's layout; see `rearkit.contracts.PublishedLayout`."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether there are gated MLPs and normalised queries."""
        needed = ("embeddings.weight", "output.weight", "blocks.0.mlp.w3.weight", "blocks.0.attn.q_norm.weight")
        return all(key in state for key in needed)

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings from the shapes, which show neither the number of prefix tokens nor that of all."""
        rows, hidden_size = state["embeddings.weight"].shape
        codebook_size = state["output.weight"].shape[0]
        return {
            "hidden_size": hidden_size,
            "num_layers": _blocks(state, "blocks."),
            "num_heads": hidden_size // state["blocks.0.attn.q_norm.weight"].shape[0],
            "codebook of": codebook_size,
            # The mask token and "no label" are the other two rows.
            "classes": rows - codebook_size - 2,
        }


def _blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})
