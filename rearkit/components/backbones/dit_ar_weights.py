"""The published layout of the DiT-style AR transformer's checkpoints, and how to read sizes from one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rearkit.components.backbones.dit_ar_blocks import PREFIX
from rearkit.contracts import EXTRA

# Published tables have N rows plus these spare ones; the first spare ones serve the prefix's positions.
SPARE_ROWS = {"pos_embed": 1024, "target_aware_pos_embed": 1024, "timesteps_embeddings": 100}
# Heads that only training needs, which the published checkpoints keep in the backbone; here the regularizer owns them.
HEADS = {"encode_align_mlp.": "encode_head.", "decode_align_mlp.": "decode_head."}


class DiTARLayout:
    """Translates published checkpoints; see `rearkit.contracts.PublishedLayout`."""

    def recognises(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the tables have the published spare rows, whose numbers differ from table to table."""
        if not all(key in state and state[key].ndim == 3 for key in SPARE_ROWS):
            return False
        # Without spare rows, as in our own layout, the tables are equally long, and the differences differ.
        return len({state[key].shape[1] - spare for key, spare in SPARE_ROWS.items()}) == 1

    def to_rearkit(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut the tables to the rows in use; store spare rows and heads under `EXTRA`.

        Spare rows that are all zero were added by `to_published`, so they are dropped.
        """
        ours: dict[str, Tensor] = {}
        for key, value in state.items():
            head = next((head for head in HEADS if key.startswith(head)), None)
            if head is not None:
                ours[f"{EXTRA}{HEADS[head]}{key.removeprefix(head)}"] = value
            elif key in SPARE_ROWS:
                used = value.shape[1] - SPARE_ROWS[key] + PREFIX
                ours[key] = value[:, :used].clone()
                spare = value[:, used:].clone()
                if spare.any():
                    ours[f"{EXTRA}{key}"] = spare
            else:
                ours[key] = value
        return ours

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Reverse `to_rearkit`; spare rows that were not kept become zero."""
        theirs: dict[str, Tensor] = {}
        for key, value in state.items():
            if key in SPARE_ROWS and value.ndim == 3 and len(value) == 1:
                rows = SPARE_ROWS[key] - PREFIX
                spare = state.get(f"{EXTRA}{key}", value.new_zeros(1, rows, value.shape[2]))
                theirs[key] = torch.cat([value, spare], dim=1)
            elif not key.startswith(EXTRA):
                theirs[key] = value
            else:
                for published, ours in HEADS.items():
                    if key.startswith(f"{EXTRA}{ours}"):
                        theirs[published + key.removeprefix(f"{EXTRA}{ours}")] = value
        return theirs

    def sizes(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings from the shapes of a state dict in rearkit's layout."""
        hidden_size = state["embeddings.weight"].shape[1]
        mlp_size = state["blocks.0.mlp.fc1.weight"].shape[0]
        sizes = {
            "hidden_size": hidden_size,
            "num_layers": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
            "num_heads": hidden_size // state["blocks.0.attn.q_norm.weight"].shape[0],
            "codebook of": state["lm_head.weight"].shape[0],
            # The mask token and "no label" are the other two rows.
            "classes": state["embeddings.weight"].shape[0] - state["lm_head.weight"].shape[0] - 2,
            "tokens an image": state["pos_embed"].shape[1] - PREFIX,
        }
        return sizes if mlp_size == 4 * hidden_size else {**sizes, "mlp_size": mlp_size}
