"""The DiT-style AR transformer of RAR and reAR: pre-norm blocks whose norms are modulated by class and place.

Shapes: B batch, N image tokens, T = N + 2 places (class token, condition, tokens), D width, H heads, V codes,
C classes, U rows of conditioning (one per class where that is fewer than B). How it decodes is in `dit_ar_decoding`.
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.backbones.dit_ar_decoding import Decoder
from rearkit.backbones.lean import LeanLinear, causal_attention, drop_mask, dropout, factors, is_lean
from rearkit.contracts import TokenSpace
from rearkit.options import setting, settings

PREFIX = 2  # class token and condition stand before token 0
NORM_EPS = 1e-6


@settings
class DiTARSettings:
    """Decoder-only transformer with qk-norm and adaLN on class and place; defaults are the published S size."""

    hidden_size: int = setting("D, width", default=768, ge=1)
    num_layers: int = setting("blocks", default=20, ge=1)
    num_heads: int = setting("attention heads; must divide hidden_size", default=16, ge=1)
    mlp_size: int | None = setting("hidden width of the MLPs; left out: 4 × hidden_size", default=None, ge=1)
    dropout: float = setting("dropout after attention and in the MLPs", default=0.1, ge=0, lt=1)
    attention_dropout: float = setting("dropout of attention weights", default=0.1, ge=0, lt=1)

    def __attrs_post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of num_heads ({self.num_heads})")


class Attention(nn.Module):
    """Causal self-attention with normalised queries and keys."""

    def __init__(self, settings: DiTARSettings) -> None:
        super().__init__()
        width, self.num_heads = settings.hidden_size, settings.num_heads
        self.qkv = LeanLinear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // self.num_heads, eps=NORM_EPS)
        self.k_norm = nn.LayerNorm(width // self.num_heads, eps=NORM_EPS)
        self.proj = LeanLinear(width, width)
        self.attention_dropout, self.dropout = settings.attention_dropout, settings.dropout

    def forward(self, x_BTD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Attend from a modulated norm of the input, (B, T, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        qkv_BTM = behind_norm(self.qkv, norm, x_BTD, shift_BTD, scale_BTD)
        q_BHT, k_BHT, v_BHT = qkv_BTM.view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout if self.training else 0.0
        out_BHT = causal_attention(self.q_norm(q_BHT), self.k_norm(k_BHT), v_BHT, rate)
        return dropout(self.proj(out_BHT.transpose(1, 2).reshape(B, T, D)), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with an exact GELU between."""

    def __init__(self, settings: DiTARSettings) -> None:
        super().__init__()
        hidden = settings.mlp_size or 4 * settings.hidden_size
        self.fc1 = LeanLinear(settings.hidden_size, hidden)
        self.fc2 = LeanLinear(hidden, settings.hidden_size)
        self.dropout = settings.dropout

    def forward(self, x_BTD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Pass a modulated norm of the input through both layers, (B, T, D) to (B, T, D)."""
        hidden = behind_norm(self.fc1, norm, x_BTD, shift_BTD, scale_BTD)
        rate = self.dropout if self.training else 0.0
        if rate and not torch.compiler.is_compiling():
            mask = drop_mask(hidden, rate)
            out_BTD = self.fc2(hidden, mask, prepare=lambda x, kept: F.gelu(x) * factors(kept, rate, x.dtype))
        else:  # the compiler computes activations again by itself, but takes no bool for an integer
            out_BTD = self.fc2(hidden, prepare=lambda x: F.dropout(F.gelu(x), rate))
        return dropout(out_BTD, self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each behind a norm that is shifted, scaled and gated by the condition."""

    def __init__(self, settings: DiTARSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(settings)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(settings)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), LeanLinear(width, 6 * width))

    def forward(self, x_BTD: Tensor, condition: Condition) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = condition.modulate(self.adaLN_modulation).chunk(6, dim=-1)
        x_BTD = torch.addcmul(x_BTD, gate1, self.attn(x_BTD, shift1, scale1, self.norm1))
        return torch.addcmul(x_BTD, gate2, self.mlp(x_BTD, shift2, scale2, self.norm2))


def behind_norm(linear: LeanLinear, norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``linear(norm(x) · (1 + scale) + shift)``, of which x, shift and scale are kept for the backward pass."""
    if is_lean():
        return linear(x, norm.weight, norm.bias, shift, scale, prepare=modulated_norm)
    normed = norm(x)  # called as a module, since ZeRO stage 3 makes parameters whole by that when compiled
    out: Tensor = linear(torch.addcmul(normed + shift, normed, scale))
    return out


def modulated_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) · (1 + scale) + shift`` over the last dimension."""
    normed = F.layer_norm(x, x.shape[-1:], weight, bias, NORM_EPS)
    return torch.addcmul(normed + shift, normed, scale)


@attrs.define(eq=False)
class Condition:
    """SiLU of class and place embeddings, (U, T, D), and the row of each sample, (B,), or None where U is B.

    A modulation depends on class and place only, so with fewer classes than samples it is computed once for each class
    and gathered: at 10 classes and batch 64 this saves most of a third of a block's arithmetic.
    """

    activated_UTD: Tensor
    row_B: Tensor | None

    def modulate(self, modulation: nn.Sequential) -> Tensor:
        """Return the modulation of each sample and place, (B, T, m·D)."""
        out_UTM: Tensor = modulation[1](self.activated_UTD)  # its SiLU is the same for all blocks, and done
        # Not by indexing, whose gradient on several threads is added up in another order each time, and slowly.
        return out_UTM if self.row_B is None else out_UTM.index_select(0, self.row_B)


class FinalNorm(nn.Module):
    """The modulated norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), LeanLinear(width, 2 * width))

    def forward(self, x_BTD: Tensor, condition: Condition) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        scale, shift = condition.modulate(self.adaLN_modulation).chunk(2, dim=-1)
        return modulated_norm(x_BTD, None, None, shift, scale)


class DiTAR(nn.Module):
    """The backbone; see `rearkit.contracts.Backbone`.

    Rows of the token table: V codes, a mask token (unused; it is in the published layout), C classes, "no label".
    Besides its own position, each place is told which token it predicts (`target_aware_pos_embed`).
    """

    prefix_length = PREFIX

    def __init__(self, settings: DiTARSettings, space: TokenSpace) -> None:
        super().__init__()
        self.space = space
        self.hidden_size, self.num_layers = settings.hidden_size, settings.num_layers
        self.head_dim = settings.hidden_size // settings.num_heads
        self.num_heads = settings.num_heads
        places = PREFIX + space.num_tokens
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.hidden_size))
        self.embeddings = nn.Embedding(space.codebook_size + 1 + space.num_classes + 1, self.hidden_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, places, self.hidden_size))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, places, self.hidden_size))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, places, self.hidden_size))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.num_layers))
        self.adaln_before_head = FinalNorm(self.hidden_size)
        self.lm_head = LeanLinear(self.hidden_size, space.codebook_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: truncated normals of 0.02, and modulations at zero, so that blocks start shut."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for table in (self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, Block | FinalNorm):
                for parameter in module.adaLN_modulation.parameters():
                    nn.init.zeros_(parameter)

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Predict all tokens, teacher-forced; see `rearkit.contracts.Backbone.forward`."""
        ids_BK = torch.cat([self.class_ids(classes_B)[:, None], tokens_BN], dim=1)
        x_BTD = torch.cat([self.cls_token.expand(len(ids_BK), 1, -1), self.embeddings(ids_BK)], dim=1)
        x_BTD = x_BTD + self.pos_embed + self.target_table()
        condition = self._condition(classes_B)
        hidden: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, condition)
            if index in layers:
                hidden[index] = x_BTD
        predicting = Condition(condition.activated_UTD[:, PREFIX - 1 :], condition.row_B)
        return self.lm_head(self.adaln_before_head(x_BTD[:, PREFIX - 1 :], predicting)), hidden

    @torch.no_grad()
    def start(self, classes_B: Tensor) -> tuple[Tensor, Decoder]:
        """Begin cached decoding; see `rearkit.contracts.Backbone.start`."""
        cache = Decoder(self, classes_B)
        cache.advance(self.cls_token[0].expand(len(classes_B), -1), predict=False)
        return cache.advance(self.embeddings(self.class_ids(classes_B))), cache

    @torch.no_grad()
    def step(self, tokens_B: Tensor, cache: Decoder) -> Tensor:
        """Append a token; see `rearkit.contracts.Backbone.step`."""
        return cache.advance(self.embeddings(tokens_B))

    def target_table(self) -> Tensor:
        """(1, T, D): place 1 + i predicts token i and carries row 2 + i; the first and the last predict nothing."""
        return F.pad(self.target_aware_pos_embed[:, PREFIX:], (0, 0, PREFIX - 1, 1))

    def _condition(self, classes_B: Tensor) -> Condition:
        """Class and place embeddings of all places."""
        if self.space.num_classes + 1 < len(classes_B):
            all_classes = torch.arange(self.space.num_classes + 1, device=classes_B.device)
            embedding_UTD = self.embeddings(self.class_ids(all_classes))[:, None] + self.timesteps_embeddings
            return Condition(F.silu(embedding_UTD), classes_B)
        return Condition(F.silu(self.embeddings(self.class_ids(classes_B))[:, None] + self.timesteps_embeddings), None)

    def class_ids(self, classes_B: Tensor) -> Tensor:
        """Row of the token table for a class in [0, C]."""
        return classes_B + self.space.codebook_size + 1
