"""The blocks of `LlamaGenGPT`: RMS norms, rotary attention and SwiGLU, as in Llama (Touvron et al. 2023), no biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import setting, settings
from rearkit_llamagen.rotary import rotate

NORM_EPS = 1e-5
# The hidden width of a feed-forward layer is rounded up to a multiple of this, as in the published code.
MULTIPLE = 256


@settings
class LlamaGenGPTSettings:
    """Llama-like transformer: RMSNorm, 2-D rotary positions, SwiGLU, one class embedding; defaults are LlamaGen-B."""

    hidden_size: int = setting("D, width", default=768, ge=1)
    num_layers: int = setting("blocks", default=12, ge=1)
    num_heads: int = setting(
        "attention heads; a head is hidden_size / num_heads wide, a multiple of 4", default=12, ge=1
    )
    grid_width: int = setting(
        "tokens in a row, for positions, where the tokenizer has no grid; 0: the side of a square that holds all",
        default=0,
        ge=0,
    )
    token_dropout: float = setting("dropout of the embeddings of class and tokens", default=0.1, ge=0, lt=1)
    dropout: float = setting("dropout after attention and feed-forward layers", default=0.1, ge=0, lt=1)
    attention_dropout: float = setting("dropout of attention weights", default=0.0, ge=0, lt=1)

    def __attrs_post_init__(self) -> None:
        # Half of a head's pairs turn by row and half by column, so that a head needs an even number of pairs.
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of {4 * self.num_heads}, four times num_heads"
            )


class Attention(nn.Module):
    """Causal self-attention with rotated queries and keys."""

    def __init__(self, settings: LlamaGenGPTSettings) -> None:
        super().__init__()
        self.num_heads = settings.num_heads
        self.wqkv = nn.Linear(settings.hidden_size, 3 * settings.hidden_size, bias=False)
        self.wo = nn.Linear(settings.hidden_size, settings.hidden_size, bias=False)
        self.attention_dropout = settings.attention_dropout
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor, rotary_2Tp: Tensor) -> Tensor:
        """Apply attention, (B, T, D) to (B, T, D)."""
        qkv_3BHTh = self.wqkv(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHTh, k_BHTh = rotate(qkv_3BHTh[:2], rotary_2Tp)
        dropout = self.attention_dropout if self.training else 0.0
        out_BHTh = F.scaled_dot_product_attention(q_BHTh, k_BHTh, qkv_3BHTh[2], dropout_p=dropout, is_causal=True)
        return self.dropout(self.wo(out_BHTh.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): ``w2(silu(w1 x) · w3 x)``."""

    def __init__(self, settings: LlamaGenGPTSettings) -> None:
        super().__init__()
        hidden = feed_forward_width(settings.hidden_size)
        self.w1 = nn.Linear(settings.hidden_size, hidden, bias=False)
        self.w3 = nn.Linear(settings.hidden_size, hidden, bias=False)
        self.w2 = nn.Linear(hidden, settings.hidden_size, bias=False)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply the layers, (B, T, D) to (B, T, D)."""
        return self.dropout(self.w2(F.silu(self.w1(x_BTD)) * self.w3(x_BTD)))


class Block(nn.Module):
    """Attention, then the feed-forward layer, each after a norm and around a shortcut."""

    def __init__(self, settings: LlamaGenGPTSettings) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(settings.hidden_size, eps=NORM_EPS)
        self.attention = Attention(settings)
        self.ffn_norm = nn.RMSNorm(settings.hidden_size, eps=NORM_EPS)
        self.feed_forward = FeedForward(settings)

    def forward(self, x_BTD: Tensor, rotary_2Tp: Tensor) -> Tensor:
        """Apply the block, (B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary_2Tp)
        return x_BTD + self.feed_forward(self.ffn_norm(x_BTD))


def feed_forward_width(hidden_size: int) -> int:
    """Return the hidden width of a feed-forward layer: two thirds of 4·D, rounded down, then up to `MULTIPLE`.

    Two thirds, so that its three matrices have as many parameters as the two of a usual MLP.
    """
    return -(-(8 * hidden_size // 3) // MULTIPLE) * MULTIPLE
