"""A regularizer: where a block has just read token i, its output should already predict the embedding of token i+1.

Shapes: B batch, N tokens, P positions before token 0's own, D width of the backbone, V codes, Z their width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import setting, settings
from rearkit.contracts import Regularizer, RegularizerContext, TrainingStep


@settings
class NextEmbeddingSettings:
    """Pull a block's output at each token's position towards the codebook embedding of the next token."""

    layer: int | None = setting("block, counted from 0; left out: half way up", default=None, ge=0)
    weight: float = setting("factor of this loss in the total", default=0.5, ge=0)


class NextEmbedding(Regularizer):
    """The regularizer; see `rearkit.contracts.Regularizer`.

    Raises:
        ValueError: the layer is not in the backbone. rearkit turns this into a one-line message.
    """

    codebook_VZ: Tensor

    def __init__(self, settings: NextEmbeddingSettings, context: RegularizerContext) -> None:
        super().__init__()
        self.weight = settings.weight
        self.layer = context.num_layers // 2 if settings.layer is None else settings.layer
        if self.layer >= context.num_layers:
            raise ValueError(
                f"layer {self.layer} is not in the backbone, whose blocks are 0 to {context.num_layers - 1}"
            )
        self.layers = [self.layer]
        self.head = nn.Linear(context.hidden_size, context.codebook_VZ.shape[1])
        # A buffer, so that it moves with the module; detached, since the tokenizer's codebook must not be trained; not
        # saved, since the tokenizer's weights contain it.
        self.register_buffer("codebook_VZ", context.codebook_VZ.detach().clone(), persistent=False)

    def forward(self, step: TrainingStep) -> dict[str, Tensor]:
        """Return ``{"next": …}``: 1 - cosine similarity, averaged over all positions but the last, which has no next.

        ``step.tokens_BN`` are the clean tokens, so that the target is right even where the context was replaced.
        """
        places_BND = step.hidden[self.layer][:, step.prefix_length : -1]
        target_BNZ = self.codebook_VZ[step.tokens_BN[:, 1:]]
        error_BN = 1 - F.cosine_similarity(self.head(places_BND).float(), target_BNZ.float(), dim=-1)
        # Not a mean, which is NaN with a tokenizer of one token: there is no next token then.
        return {"next": error_BN.sum() / max(error_BN.numel(), 1)}
