"""LlamaGen's class-conditional GPT (arXiv 2406.06525, section 2.2): Llama's blocks on image tokens in raster order.

Shapes: B batch, N image tokens, T = 1 + N positions (the class, then the tokens), D width, H heads, h = D/H,
p = h/2 pairs of channels, V codes, C classes. Decoding is in `decoding`, the published names in `weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rearkit.contracts import Backbone, TokenSpace
from rearkit_llamagen.blocks import NORM_EPS, Block, LlamaGenGPTSettings
from rearkit_llamagen.decoding import Decoder
from rearkit_llamagen.rotary import rotary_table


class LlamaGenGPT(Backbone):
    """The backbone; see `rearkit.contracts.Backbone`. The last of the C + 1 class embeddings is "no label"."""

    # The class embedding.
    prefix_length = 1
    any_grid = True
    rotary_bits: Tensor

    def __init__(self, settings: LlamaGenGPTSettings, space: TokenSpace) -> None:
        super().__init__()
        self.space = space
        self.hidden_size = settings.hidden_size
        self.num_layers = settings.num_layers
        self.num_heads = settings.num_heads
        self.head_dim = settings.hidden_size // settings.num_heads
        _, columns = space.grid or (0, 0)
        # The grid first: weights may be used at another size than that of the setting.
        grid_width = columns or settings.grid_width or square_side(space.num_tokens)
        rotary_2Tp = rotary_table(space.num_tokens, grid_width, self.head_dim)
        # Settings determine the table, so it is not saved. A buffer moves with the parameters; as int32, since bf16
        # training casts buffers of floats, and rounded angles are other positions.
        self.register_buffer("rotary_bits", rotary_2Tp.view(torch.int32), persistent=False)
        # Extra tokens, such as a mask, have rows that published weights have not.
        self.extra_tokens = space.extra_tokens
        self.tok_embeddings = nn.Embedding(space.codebook_size + space.extra_tokens, settings.hidden_size)
        # A dict around a single embedding, for the published name cls_embedding.embedding_table.weight.
        self.cls_embedding = nn.ModuleDict(
            {"embedding_table": nn.Embedding(space.num_classes + 1, settings.hidden_size)}
        )
        self.token_dropout = nn.Dropout(settings.token_dropout)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.num_layers))
        self.norm = nn.RMSNorm(settings.hidden_size, eps=NORM_EPS)
        self.output = nn.Linear(settings.hidden_size, space.codebook_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: normals of deviation 0.02, and zero for the output layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.output.weight)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Predict all tokens, teacher-forced; see `rearkit.contracts.Backbone.forward`."""
        embedded = (self.embed_classes(classes_B)[:, None], self.tok_embeddings(tokens_BN))
        x_BTD = self.token_dropout(torch.cat(embedded, dim=1))
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
        return cache.advance(self.embed_classes(classes_B)), cache

    @torch.no_grad()
    def step(self, tokens_B: Tensor, cache: Decoder) -> Tensor:
        """Append a token; see `rearkit.contracts.Backbone.step`."""
        return cache.advance(self.tok_embeddings(tokens_B))

    def embed_classes(self, classes_B: Tensor) -> Tensor:
        """Return the embeddings of classes in [0, C], (B, D)."""
        embedded_BD: Tensor = self.cls_embedding["embedding_table"](classes_B)
        return embedded_BD

    @property
    def rotary_2Tp(self) -> Tensor:
        """The result of `rotary_table`, on the module's device."""
        return self.rotary_bits.view(torch.float32)


def square_side(num_tokens: int) -> int:
    """Return the side of the smallest square that holds so many tokens, the grid's own where they are one."""
    return math.isqrt(num_tokens - 1) + 1
