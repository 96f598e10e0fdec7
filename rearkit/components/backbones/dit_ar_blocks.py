"""The blocks of `DiTAR`: attention and MLP, each after a norm that class and position modulate.

Shapes as in `dit_ar`.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.layers.lean import LeanLinear, causal_attention, drop_mask, dropout, factors, is_lean
from rearkit.recipe.settings import setting, settings

# Class token and condition come before token 0.
PREFIX = 2
NORM_EPS = 1e-6


@settings
class DiTARSettings:
    """Decoder-only transformer with qk-norm and adaLN on class and position; defaults are the published S size."""

    hidden_size: int = setting("D, width", default=768, ge=1)
    num_layers: int = setting("blocks", default=20, ge=1, le=1000)
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
        width = settings.hidden_size
        self.num_heads = settings.num_heads
        self.qkv = LeanLinear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // self.num_heads, eps=NORM_EPS)
        self.k_norm = nn.LayerNorm(width // self.num_heads, eps=NORM_EPS)
        self.proj = LeanLinear(width, width)
        self.attention_dropout = settings.attention_dropout
        self.dropout = settings.dropout

    def forward(self, x_BTD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Apply attention to a modulated norm of the input, (B, T, D) to (B, T, D)."""
        B, T, D = x_BTD.shape
        qkv_BTM = behind_norm(self.qkv, norm, x_BTD, shift_BTD, scale_BTD)
        q_BHT, k_BHT, v_BHT = qkv_BTM.view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        rate = self.attention_dropout if self.training else 0.0
        out_BHT = causal_attention(self.q_norm(q_BHT), self.k_norm(k_BHT), v_BHT, rate)
        return dropout(self.proj(out_BHT.transpose(1, 2).reshape(B, T, D)), self.dropout, self.training)


class MLP(nn.Module):
    """Two layers with an exact GELU in between."""

    def __init__(self, settings: DiTARSettings) -> None:
        super().__init__()
        hidden = settings.mlp_size or 4 * settings.hidden_size
        self.fc1 = LeanLinear(settings.hidden_size, hidden)
        self.fc2 = LeanLinear(hidden, settings.hidden_size)
        self.dropout = settings.dropout

    def forward(self, x_BTD: Tensor, shift_BTD: Tensor, scale_BTD: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Apply both layers to a modulated norm of the input, (B, T, D) to (B, T, D)."""
        hidden = behind_norm(self.fc1, norm, x_BTD, shift_BTD, scale_BTD)
        rate = self.dropout if self.training else 0.0
        if rate and not torch.compiler.is_compiling():
            # Drawn here, since `prepare` must not be random: the backward pass calls it again.
            mask = drop_mask(hidden, rate)
            out_BTD = self.fc2(hidden, mask, prepare=lambda x, kept: F.gelu(x) * factors(kept, rate, x.dtype))
        else:
            # The compiler computes activations again by itself; it cannot read bools as integers, as `factors` does.
            out_BTD = self.fc2(hidden, prepare=lambda x: dropout(F.gelu(x), rate, self.training))
        return dropout(out_BTD, self.dropout, self.training)


class Block(nn.Module):
    """Attention and MLP, each after a norm that the condition shifts and scales, with a gate from the condition."""

    def __init__(self, settings: DiTARSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(settings)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(settings)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), LeanLinear(width, 6 * width))

    def forward(self, x_BTD: Tensor, condition: Condition) -> Tensor:
        """Apply the block, (B, T, D) to (B, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = condition.modulate(self.adaLN_modulation).chunk(6, dim=-1)
        # addcmul: product and sum in one pass over memory.
        x_BTD = torch.addcmul(x_BTD, gate1, self.attn(x_BTD, shift1, scale1, self.norm1))
        return torch.addcmul(x_BTD, gate2, self.mlp(x_BTD, shift2, scale2, self.norm2))


def behind_norm(linear: LeanLinear, norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Compute ``linear(norm(x) · (1 + scale) + shift)``, keeping x, shift and scale for the backward pass."""
    if is_lean():
        return linear(x, norm.weight, norm.bias, shift, scale, prepare=modulated_norm)
    # Called as a module, since ZeRO stage 3 gathers a module's parameters when it is called, also when compiled.
    normed = norm(x)
    out: Tensor = linear(torch.addcmul(normed + shift, normed, scale))
    return out


def modulated_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor) -> Tensor:
    """Compute ``norm(x) · (1 + scale) + shift`` over the last dimension."""
    normed = F.layer_norm(x, x.shape[-1:], weight, bias, NORM_EPS)
    # Equal to normed · (1 + scale) + shift, in two passes over memory instead of three.
    return torch.addcmul(normed + shift, normed, scale)


@attrs.define(eq=False)
class Condition:
    """SiLU of class and position embeddings, (U, T, D), and the row of each sample, (B,), or None if each has its own.

    A modulation depends on class and position only. With fewer classes than samples, it is computed once per class and
    gathered: at 10 classes and batch 64 this saves most of a third of a block's arithmetic.
    """

    activated_UTD: Tensor
    row_B: Tensor | None

    def modulate(self, modulation: nn.Sequential) -> Tensor:
        """Return the modulation of each sample and position, (B, T, m·D)."""
        # Only the linear layer: the SiLU before it is the same in all blocks, and already done.
        out_UTM: Tensor = modulation[1](self.activated_UTD)
        # Not by indexing: on several threads its gradient is summed slowly, and in a different order each time.
        return out_UTM if self.row_B is None else out_UTM.index_select(0, self.row_B)


class FinalNorm(nn.Module):
    """The modulated norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=NORM_EPS, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), LeanLinear(width, 2 * width))

    def forward(self, x_BTD: Tensor, condition: Condition) -> Tensor:
        """Apply the norm, (B, T, D) to (B, T, D)."""
        # Scale before shift, unlike in the blocks: the order of the published weights.
        scale, shift = condition.modulate(self.adaLN_modulation).chunk(2, dim=-1)
        return modulated_norm(x_BTD, None, None, shift, scale)
