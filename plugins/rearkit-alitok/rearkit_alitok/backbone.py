"""AliTok's generator: a plain decoder-only transformer with RMSNorm, rotary positions and SwiGLU, and no adaLN.

Shapes: B batch, N image tokens, T = 1 + N positions (the condition, prefix tokens, grid tokens in raster order),
D width, H heads, h = D/H, p = h/2 pairs of channels, V codes, C classes. Decoding is in `decoding`. Parameter names
are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rearkit.contracts import Backbone, TokenSpace
from rearkit_alitok.blocks import NORM_EPS, AliTokARSettings, Block
from rearkit_alitok.decoding import Decoder
from rearkit_alitok.rotary import rotary_table


class AliTokAR(Backbone):
    """The backbone; see `rearkit.contracts.Backbone`.

    Rows of the token table: V codes, a mask token (unused, but in the published layout), C classes, "no label".

    Raises:
        ValueError: the image tokens are not ``prefix_tokens`` and a square grid.
    """

    # The condition.
    prefix_length = 1

    def __init__(self, settings: AliTokARSettings, space: TokenSpace) -> None:
        super().__init__()
        self.space = space
        self.hidden_size = settings.hidden_size
        self.num_layers = settings.num_layers
        self.num_heads = settings.num_heads
        self.head_dim = settings.hidden_size // settings.num_heads
        rotary_2Tp = rotary_table(settings.prefix_tokens, _grid(settings, space), self.head_dim)
        # A buffer, to be on the parameters' device; of int32, since bf16 training casts buffers of floats and would
        # round the table. Not saved, since the settings determine it.
        self.register_buffer("rotary_bits", rotary_2Tp.view(torch.int32), persistent=False)
        self.extra_tokens = max(1, space.extra_tokens)
        rows = space.codebook_size + self.extra_tokens + space.num_classes + 1
        self.embeddings = nn.Embedding(rows, self.hidden_size)
        self.token_dropout = nn.Dropout(settings.token_dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(self.hidden_size, eps=NORM_EPS)
        self.output = nn.Linear(self.hidden_size, space.codebook_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: normals of deviation 0.02, and zero for biases and the output's weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.output.weight)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Predict all tokens, teacher-forced; see `rearkit.contracts.Backbone.forward`."""
        x_BTD = self.token_dropout(self.embeddings(torch.cat([self._class_ids(classes_B)[:, None], tokens_BN], dim=1)))
        rotary_2Tp = self.rotary_2Tp
        hidden: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rotary_2Tp)
            if index in layers:
                hidden[index] = x_BTD
        return self.output(self.norm(x_BTD)), hidden

    @torch.no_grad()
    def start(self, classes_B: Tensor) -> tuple[Tensor, Decoder]:
        """Begin cached decoding; see `rearkit.contracts.Backbone.start`."""
        cache = Decoder(self, len(classes_B))
        return self.step(self._class_ids(classes_B), cache), cache

    @torch.no_grad()
    def step(self, tokens_B: Tensor, cache: Decoder) -> Tensor:
        """Append a token; see `rearkit.contracts.Backbone.step`."""
        return cache.advance(self.embeddings(tokens_B))

    @property
    def rotary_2Tp(self) -> Tensor:
        """The result of `rotary_table`, on the module's device."""
        return self.rotary_bits.view(torch.float32)

    def _class_ids(self, classes_B: Tensor) -> Tensor:
        """Return the row of the token table for each class in [0, C]."""
        return classes_B + self.space.codebook_size + self.extra_tokens


def _grid(settings: AliTokARSettings, space: TokenSpace) -> int:
    """Return the side of the square grid that the tokens after the prefix form."""
    in_grid = space.num_tokens - settings.prefix_tokens
    if in_grid < 0 or math.isqrt(in_grid) ** 2 != in_grid:
        raise ValueError(
            f"the tokenizer's {space.num_tokens} tokens are not prefix_tokens ({settings.prefix_tokens}) and a square "
            "grid; set prefix_tokens to the tokenizer's"
        )
    return math.isqrt(in_grid)
