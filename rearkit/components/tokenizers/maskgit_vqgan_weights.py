"""The published layout of the MaskGIT VQGAN's checkpoints, which is also rearkit's, and how to read sizes from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class MaskGITVQGANLayout:
    """Recognises published checkpoints; see `rearkit.contracts.PublishedLayout`."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the codebook and the decoder's first block are there, by name."""
        return "quantize.embedding.weight" in state and "decoder.up.0.block.0.conv1.weight" in state

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict unchanged."""
        return dict(state)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict unchanged."""
        return dict(state)

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings from the shapes."""
        hidden = state["encoder.conv_in.weight"].shape[0]
        levels = sorted({int(key.split(".")[2]) for key in state if key.startswith("encoder.down.")})
        return {
            "hidden_channels": hidden,
            # Each level's first convolution has the level's number of channels.
            "channel_mult": [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // hidden for i in levels],
            "num_res_blocks": len({key.split(".")[2] for key in state if key.startswith("encoder.mid.")}),
            "codebook_size": state["quantize.embedding.weight"].shape[0],
            "embedding_dim": state["quantize.embedding.weight"].shape[1],
        }
