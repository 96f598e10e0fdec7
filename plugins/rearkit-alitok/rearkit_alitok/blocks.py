"""The blocks of `AliTokAR`: rotary attention and SwiGLU after RMS norms."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import setting, settings
from rearkit_alitok.rotary import rotate

NORM_EPS = 1e-5
# The MLPs' hidden width is rounded up to a multiple of this, as in the published code.
MULTIPLE = 256


@settings
class AliTokARSettings:
    """Decoder-only transformer: RMSNorm, 1-D and 2-D rotary positions, SwiGLU; defaults are the published B size."""

    hidden_size: int = setting("D, width", default=768, ge=1)
    num_layers: int = setting("blocks", default=24, ge=1)
    num_heads: int = setting(
        "attention heads; a head is hidden_size / num_heads wide, a multiple of 4", default=16, ge=1
    )
    prefix_tokens: int = setting("tokens before the square grid, as in the tokenizer", default=17, ge=0)
    token_dropout: float = setting("dropout of the embeddings' output", default=0.0, ge=0, lt=1)
    dropout: float = setting("dropout after attention and MLPs", default=0.1, ge=0, lt=1)
    attention_dropout: float = setting("dropout of attention weights", default=0.1, ge=0, lt=1)

    def __attrs_post_init__(self) -> None:
        # Rotations turn pairs of channels, half of the pairs by row and half by column: a head needs a multiple of 4.
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of {4 * self.num_heads}, four times num_heads"
            )


class Attention(nn.Module):
    """Causal self-attention; queries and keys are normalised, then rotated."""

    def __init__(self, settings: AliTokARSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.num_heads = settings.num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // self.num_heads, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(width // self.num_heads, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)
        self.attention_dropout = settings.attention_dropout
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor, rotary_2Tp: Tensor) -> Tensor:
        """Apply attention, (B, T, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        q_BHTh, k_BHTh, v_BHTh = self.qkv(x_BTD).view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q_BHTh = rotate(self.q_norm(q_BHTh), rotary_2Tp)
        k_BHTh = rotate(self.k_norm(k_BHTh), rotary_2Tp)
        dropout = self.attention_dropout if self.training else 0.0
        out_BHTh = F.scaled_dot_product_attention(q_BHTh, k_BHTh, v_BHTh, dropout_p=dropout, is_causal=True)
        return self.dropout(self.proj(out_BHTh.transpose(1, 2).reshape(B, T, D)))


class SwiGLU(nn.Module):
    """``w2(silu(w1 x) · w3 x)``; the hidden width is two thirds of 4·D, rounded up."""

    def __init__(self, settings: AliTokARSettings) -> None:
        super().__init__()
        # Two thirds, so that three matrices have as many parameters as the two of a usual MLP.
        hidden = math.ceil(8 * settings.hidden_size // 3 / MULTIPLE) * MULTIPLE
        self.w1 = nn.Linear(settings.hidden_size, hidden, bias=False)
        self.w3 = nn.Linear(settings.hidden_size, hidden, bias=False)
        self.w2 = nn.Linear(hidden, settings.hidden_size, bias=False)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply the MLP, (B, T, D) to (B, T, D)."""
        return self.dropout(self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD)))


class Block(nn.Module):
    """Attention and MLP, each after its norm."""

    def __init__(self, settings: AliTokARSettings) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(settings.hidden_size, eps=NORM_EPS)
        self.attn = Attention(settings)
        self.norm2 = nn.RMSNorm(settings.hidden_size, eps=NORM_EPS)
        self.mlp = SwiGLU(settings)

    def forward(self, x_BTD: Tensor, rotary_2Tp: Tensor) -> Tensor:
        """Apply the block, (B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), rotary_2Tp)
        return x_BTD + self.mlp(self.norm2(x_BTD))
