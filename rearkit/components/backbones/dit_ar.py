"""The DiT-style AR transformer of RAR and reAR: pre-norm blocks whose norms are modulated by class and position.

Shapes: B batch, N image tokens, T = N + 2 positions (class token, condition, tokens), D width, H heads, V codes,
C classes, U rows of conditioning (one per class if that is fewer than B). Decoding is in `dit_ar_decoding`.
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.components.backbones.dit_ar_blocks import PREFIX, Block, Condition, DiTARSettings, FinalNorm
from rearkit.components.backbones.dit_ar_decoding import Decoder
from rearkit.contracts import Backbone, TokenSpace
from rearkit.layers.lean import LeanLinear
from rearkit.layers.position_tables import resized_table, square_grid

# The tables with a row for each position.
POSITIONS = ("pos_embed", "target_aware_pos_embed", "timesteps_embeddings")


class DiTAR(Backbone):
    """The backbone; see `rearkit.contracts.Backbone`.

    Rows of the token table: V codes, a mask token (in the published layout, for noise to use) and any further extra
    tokens, C classes, "no label".
    Besides its own position embedding, each position gets one of the token that it predicts (`target_aware_pos_embed`).
    """

    prefix_length = PREFIX
    any_grid = True

    def __init__(self, settings: DiTARSettings, space: TokenSpace) -> None:
        super().__init__()
        self.space = space
        self.hidden_size = settings.hidden_size
        self.num_layers = settings.num_layers
        self.head_dim = settings.hidden_size // settings.num_heads
        self.num_heads = settings.num_heads
        places = PREFIX + space.num_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.hidden_size))
        self.extra_tokens = max(1, space.extra_tokens)
        rows = space.codebook_size + self.extra_tokens + space.num_classes + 1
        self.embeddings = nn.Embedding(rows, self.hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, places, self.hidden_size))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, places, self.hidden_size))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, places, self.hidden_size))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.num_layers))
        self.adaln_before_head = FinalNorm(self.hidden_size)
        self.lm_head = LeanLinear(self.hidden_size, space.codebook_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: truncated normals of deviation 0.02, and zero for biases and modulations."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for table in (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            # Last, to overwrite the above. With gates at zero, every block starts as the identity.
            if isinstance(module, Block | FinalNorm):
                for parameter in module.adaLN_modulation.parameters():
                    nn.init.zeros_(parameter)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Predict all tokens, teacher-forced; see `rearkit.contracts.Backbone.forward`."""
        # The condition is a row of the same table, so that one look-up serves condition and tokens.
        ids_BK = torch.cat([self.class_ids(classes_B)[:, None], tokens_BN], dim=1)
        x_BTD = torch.cat([self.cls_token.expand(len(ids_BK), 1, -1), self.embeddings(ids_BK)], dim=1)
        x_BTD = x_BTD + self.pos_embed + self.target_table()
        condition = self._condition(classes_B)
        hidden: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, condition)
            if index in layers:
                hidden[index] = x_BTD
        # The class token's position predicts nothing; the last one's logits have no target, but are in the contract.
        predicting = Condition(condition.activated_UTD[:, PREFIX - 1 :], condition.row_B)
        return self.lm_head(self.adaln_before_head(x_BTD[:, PREFIX - 1 :], predicting)), hidden

    @torch.no_grad()
    def start(self, classes_B: Tensor) -> tuple[Tensor, Decoder]:
        """Begin cached decoding; see `rearkit.contracts.Backbone.start`."""
        cache = Decoder(self, classes_B)
        # The class token's own logits are not needed, only its keys and values.
        cache.advance(self.cls_token[0].expand(len(classes_B), -1), predict=False)
        return cache.advance(self.embeddings(self.class_ids(classes_B))), cache

    @torch.no_grad()
    def step(self, tokens_B: Tensor, cache: Decoder) -> Tensor:
        """Append a token; see `rearkit.contracts.Backbone.step`."""
        return cache.advance(self.embeddings(tokens_B))

    @torch.no_grad()
    def adapted(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Take over rows of tokens, interpolate positions; see `rearkit.contracts.Backbone.adapted`."""
        ours = self.state_dict()
        adapted, told = dict(state), []
        grid = self.space.grid or square_grid(self.space.num_tokens)
        for name in POSITIONS:
            table = state.get(name)
            if grid is None or table is None or table.ndim != 3:
                continue
            own = square_grid(table.shape[1] - PREFIX)
            if own is not None and own != grid:
                adapted[name] = resized_table(table, own, grid, PREFIX)
                told.append("interpolated: {}, from {} × {} to {} × {} tokens".format(name, *own, *grid))
        rows, head = state.get("embeddings.weight"), state.get("lm_head.weight")
        if rows is not None and head is not None and rows.shape[1:] == ours["embeddings.weight"].shape[1:]:
            adapted["embeddings.weight"] = self._token_rows(rows, len(head), told)
        return adapted, told

    def _token_rows(self, rows_RD: Tensor, codes: int, told: list[str]) -> Tensor:
        """Put together a token table from one of another size: codes, mask, classes and "no label" are rows of one."""
        ours_RD = self.embeddings.weight.detach().clone()
        space = self.space
        # One mask token, as in the published layout, and "no label" are the rows besides codes and classes.
        classes = len(rows_RD) - codes - 2
        if rows_RD.shape == ours_RD.shape and codes == space.codebook_size:
            return rows_RD
        if codes == space.codebook_size:
            ours_RD[:codes] = rows_RD[:codes]
        else:
            told.append(f"initialised: the rows of {space.codebook_size} codes, where the file has {codes}")
        ours_RD[space.codebook_size] = rows_RD[codes]
        ours_RD[-1] = rows_RD[-1]
        if classes == space.num_classes:
            ours_RD[-1 - classes : -1] = rows_RD[-1 - classes : -1]
        else:
            told.append(f"initialised: the rows of {space.num_classes} classes, where the file has {classes}")
        return ours_RD

    def target_table(self) -> Tensor:
        """Return (1, T, D): position 1 + i predicts token i and gets row 2 + i; the first and last predict nothing."""
        return F.pad(self.target_aware_pos_embed[:, PREFIX:], (0, 0, PREFIX - 1, 1))

    def _condition(self, classes_B: Tensor) -> Condition:
        """Return the condition: class and position embeddings of all positions."""
        # All classes, not only those in the batch: finding these would make a GPU wait.
        if self.space.num_classes + 1 < len(classes_B):
            all_classes = torch.arange(self.space.num_classes + 1, device=classes_B.device)
            embedding_UTD = self.embeddings(self.class_ids(all_classes))[:, None] + self.timesteps_embeddings
            return Condition(F.silu(embedding_UTD), classes_B)
        return Condition(F.silu(self.embeddings(self.class_ids(classes_B))[:, None] + self.timesteps_embeddings), None)

    def class_ids(self, classes_B: Tensor) -> Tensor:
        """Return the row of the token table for each class in [0, C]."""
        return classes_B + self.space.codebook_size + self.extra_tokens
