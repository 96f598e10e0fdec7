"""A small backbone for checks of what calls or copies one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rearkit.contracts import Backbone, TokenSpace


class ToyBackbone(Backbone):
    """Each position sees the mean of the embeddings so far; its blocks are linear layers with a residual.

    Args:
        space: what it predicts.
        hidden_size: D.
        num_layers: number of blocks.
        prefix_length: P; all places of the prefix hold the class.
    """

    def __init__(self, space: TokenSpace, hidden_size: int, num_layers: int, prefix_length: int = 1) -> None:
        super().__init__()
        self.hidden_size, self.num_layers, self.prefix_length = hidden_size, num_layers, prefix_length
        self.extra_tokens = space.extra_tokens
        self.tokens = nn.Embedding(space.codebook_size + space.extra_tokens, hidden_size)
        self.classes = nn.Embedding(space.num_classes + 1, hidden_size)
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers))
        self.head = nn.Linear(hidden_size, space.codebook_size)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """See `rearkit.contracts.Backbone.forward`."""
        prefix_BPD = self.classes(classes_B)[:, None].expand(-1, self.prefix_length, -1)
        x_BTD = torch.cat([prefix_BPD, self.tokens(tokens_BN)], dim=1)
        counts_T = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device, dtype=x_BTD.dtype)
        x_BTD = x_BTD.cumsum(1) / counts_T[:, None]
        hidden: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x_BTD = x_BTD + block(x_BTD).tanh()
            if index in layers:
                hidden[index] = x_BTD
        return self.head(x_BTD[:, self.prefix_length - 1 :]), hidden
