"""Codebook-embedding regularization (paper: "codebook embedding regularization").

Two projection heads, used in training only. The encode head maps a shallow block's output at token i's own position
to the codebook embedding of token i, so that the generator reads tokens as the tokenizer's decoder does. The decode
head maps a deep block's output at the position that predicts token i to the same embedding, so that it writes them so.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.contracts import Regularizer, RegularizerContext, TrainingStep
from rearkit.recipe.settings import setting, settings


@settings
class CodebookEmbeddingSettings:
    """Pull hidden states towards the tokenizer's codebook embeddings, at the reading and the writing end."""

    encode: bool = setting("regularize token i's own position in block encode_layer", default=True)
    decode: bool = setting("regularize the position that predicts token i in block decode_layer", default=True)
    encode_layer: int = setting("block, counted from 0, whose output the encode head reads", default=0, ge=0)
    decode_layer: int | None = setting(
        "block whose output the decode head reads; left out: three quarters of the depth (15 of 20)", default=None, ge=0
    )
    projection_dim: int = setting("width of the two hidden layers of each head", default=2048, ge=1)
    weight: float = setting("factor of this loss in the total", default=1.0, ge=0)

    def __attrs_post_init__(self) -> None:
        if not (self.encode or self.decode):
            raise ValueError("encode and decode are both false: leave the regularizer out instead")


class CodebookEmbedding(Regularizer):
    """The regularizer; see the module docstring.

    Raises:
        ValueError: a layer is not one of the backbone's blocks.
    """

    codebook_VZ: Tensor

    def __init__(self, settings: CodebookEmbeddingSettings, context: RegularizerContext) -> None:
        super().__init__()
        self.weight = settings.weight
        self.encode_layer = settings.encode_layer if settings.encode else None
        decode_layer = context.num_layers * 3 // 4 if settings.decode_layer is None else settings.decode_layer
        self.decode_layer = decode_layer if settings.decode else None
        self.layers = sorted({layer for layer in (self.encode_layer, self.decode_layer) if layer is not None})
        if self.layers[-1] >= context.num_layers:
            raise ValueError(
                f"layer {self.layers[-1]} is not in the backbone, whose blocks are 0 to {context.num_layers - 1}"
            )
        embedding_dim = context.codebook_VZ.shape[1]
        if settings.encode:
            self.encode_head = projection_head(context.hidden_size, settings.projection_dim, embedding_dim)
        if settings.decode:
            self.decode_head = projection_head(context.hidden_size, settings.projection_dim, embedding_dim)
        # Not saved, since the tokenizer's weights contain it. Normalised, since only directions are compared.
        self.register_buffer("codebook_VZ", F.normalize(context.codebook_VZ.detach().float(), dim=-1), persistent=False)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        """Return ``{"encode": …, "decode": …}``: negated cosine similarities, averaged over all B·N positions.

        A replaced token says nothing about the original, so it adds 0 to the encode term (but counts in the divisor).
        The decode term has the clean token as its target everywhere.
        """
        target_BNZ = self.codebook_VZ[step.tokens_BN]
        terms: dict[str, Tensor] = {}
        if self.encode_layer is not None:
            # Token i is at position prefix_length + i.
            places_BND = step.hidden[self.encode_layer][:, step.prefix_length :]
            similarity_BN = F.cosine_similarity(self.encode_head(places_BND).float(), target_BNZ, dim=-1)
            terms["encode"] = -similarity_BN.masked_fill(step.replaced_BN, 0.0).mean()
        if self.decode_layer is not None:
            # The position before a token predicts it; the last position predicts none.
            places_BND = step.hidden[self.decode_layer][:, step.prefix_length - 1 : -1]
            terms["decode"] = -F.cosine_similarity(self.decode_head(places_BND).float(), target_BNZ, dim=-1).mean()
        return terms


def projection_head(hidden_size: int, projection_dim: int, embedding_dim: int) -> nn.Sequential:
    """Build a 3-layer SiLU MLP, (…, D) to (…, Z), initialised like the published heads."""
    head = nn.Sequential(
        nn.Linear(hidden_size, projection_dim),
        nn.SiLU(),
        nn.Linear(projection_dim, projection_dim),
        nn.SiLU(),
        nn.Linear(projection_dim, embedding_dim),
    )
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return head
