"""The published layouts of LlamaGen's tokenizers and generators, and how to read sizes from their shapes.

What published files have beside the weights (tables and counters) is handed on under `rearkit.contracts.EXTRA`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rearkit.contracts import EXTRA


class LlamaGenVQLayout:
    """The layout of ``vq_ds16_c2i.pt`` and its kin, whose names are also ours."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether both halves have numbered ``conv_blocks``, which other VQGANs do not."""
        needed = (
            "quantize.embedding.weight",
            "quant_conv.weight",
            "encoder.conv_blocks.0.res.0.conv1.weight",
            "decoder.conv_blocks.0.res.0.conv1.weight",
        )
        return all(name in state for name in needed)

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Set the counter of used codes aside."""
        return {EXTRA + name if name == "quantize.codebook_used" else name: value for name, value in state.items()}

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put back what was set aside."""
        return {name.removeprefix(EXTRA): value for name, value in state.items()}

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings from the shapes, which do not show the image size."""
        hidden_channels = state["encoder.conv_in.weight"].shape[0]
        levels = _numbers(state, "encoder.conv_blocks.")
        channels = [state[f"encoder.conv_blocks.{i}.res.0.conv1.weight"].shape[0] for i in range(levels)]
        codebook_size, embedding_dim = state["quantize.embedding.weight"].shape
        return {
            "hidden_channels": hidden_channels,
            "channel_mult": [count // hidden_channels for count in channels],
            "num_res_blocks": _numbers(state, "encoder.conv_blocks.0.res."),
            "z_channels": state["quant_conv.weight"].shape[1],
            "codebook_size": codebook_size,
            "embedding_dim": embedding_dim,
        }


class LlamaGenGPTLayout:
    """The layout of ``c2i_B_256.pt`` and its kin: ours but for ``layers``, and for tables that some files have."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether there are Llama's blocks and a table of classes, which text-conditional ones do not have."""
        needed = (
            "tok_embeddings.weight",
            "cls_embedding.embedding_table.weight",
            "layers.0.attention.wqkv.weight",
            "layers.0.feed_forward.w3.weight",
        )
        return all(name in state for name in needed)

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the layers ``blocks``, and set tables aside."""
        return {
            EXTRA + name if _is_table(name) else _renamed(name, "layers.", "blocks."): value
            for name, value in state.items()
        }

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name the blocks ``layers``, and put back what was set aside."""
        return {
            name.removeprefix(EXTRA) if name.startswith(EXTRA) else _renamed(name, "blocks.", "layers."): value
            for name, value in state.items()
        }

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings from the shapes, which show neither the number of heads nor that of tokens."""
        return {
            "hidden_size": state["tok_embeddings.weight"].shape[1],
            "num_layers": _numbers(state, "blocks."),
            "codebook of": state["output.weight"].shape[0],
            # The other row is "no label".
            "classes": state["cls_embedding.embedding_table.weight"].shape[0] - 1,
        }


def _is_table(name: str) -> bool:
    """Return whether a tensor is computed, not trained: rotary positions, and what decoding leaves in a module."""
    return name in ("freqs_cis", "causal_mask") or ".kv_cache." in name


def _renamed(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def _numbers(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many different parts, numbered layers for example, follow a prefix in the names."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})
