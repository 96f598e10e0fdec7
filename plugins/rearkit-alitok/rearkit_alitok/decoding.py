"""Decoding of `rearkit_alitok.backbone.AliTokAR`, one position at a time, with a static cache.

The result equals that of the training forward to rounding. The differences:

- Linear layers are packed (`rearkit.PackedLinear`), the MLP's first two as one.
- Keys and values are in buffers of full length, and the single query needs no mask.
- The weights of the queries' and keys' norms are multiplied into the rotary table once.

``benchmarks/sampling_alitok.py`` measures the speed. As in rearkit's own backbone, on a CPU a row's result has the same
bits in any batch: rows are padded to an even number, and attention is `rearkit.attend_to_cache`.

Shapes: R rows (B, padded), T positions, D width, H heads, h = D/H, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import PackedLinear, attend_to_cache, beside, cache_length, fusable
from rearkit_alitok.blocks import Attention, Block


class Decoder:
    """A backbone's weights prepared for decoding, and the keys and values of one batch.

    Args:
        backbone: the backbone; its weights are read now, later changes have no effect.
        batch: B.

    Attributes:
        keys: (layers, R, H, T rounded up, h), filled up to `length` positions.
        values: likewise.
    """

    def __init__(self, backbone: Any, batch: int) -> None:
        self.batch = batch
        self.rows = batch + batch % 2
        self.length = 0
        weight = backbone.embeddings.weight
        places = 1 + backbone.space.num_tokens
        self.blocks = [DecodingBlock(block, backbone.rotary_2Tp, self.rows) for block in backbone.blocks]
        self.norm = backbone.norm
        self.head = PackedLinear(backbone.output, self.rows)
        shape = (len(self.blocks), self.rows, backbone.num_heads, cache_length(places), backbone.head_dim)
        self.keys = weight.new_empty(shape)
        self.values = weight.new_empty(shape)

    def advance(self, x_BD: Tensor) -> Tensor:
        """Append a position with embedding (B, D), and return the logits of the next token, (B, V)."""
        # An odd batch is padded with a copy of its last row, whose result is dropped at the end.
        x_RD = x_BD if self.batch == self.rows else torch.cat([x_BD, x_BD[-1:]])
        place = self.length
        for block, keys, values in zip(self.blocks, self.keys, self.values, strict=True):
            q_RHh = query(block, x_RD, block.turning_T22h[place], keys[:, :, place], values[:, :, place])
            x_RD = rest_of_block(block, x_RD, attend_to_cache(q_RHh, keys, values, place + 1))
        self.length += 1
        return predicted(self.head, self.norm, x_RD)[: self.batch]


@fusable
def query(block: DecodingBlock, x_RD: Tensor, turning_22h: Tensor, key_RHh: Tensor, value_RHh: Tensor) -> Tensor:
    """Return the queries (R, H, h) of a position, and write its keys and values to where the cache holds them."""
    qkv_R3Hh = block.qkv(rms_norm(x_RD, block.norm1)).view(len(x_RD), 3, *key_RHh.shape[1:])
    q_RHh, k_RHh = rotated(qkv_R3Hh[:, :2], turning_22h, block.eps).unbind(1)
    key_RHh.copy_(k_RHh)
    value_RHh.copy_(qkv_R3Hh[:, 2])
    return q_RHh


@fusable
def rest_of_block(block: DecodingBlock, x_RD: Tensor, attended_RD: Tensor) -> Tensor:
    """Return the block's output (R, D), from its input and what attention gathered."""
    x_RD = x_RD + block.proj(attended_RD)
    gate, hidden = block.w1_w3(rms_norm(x_RD, block.norm2)).chunk(2, dim=-1)
    return x_RD + block.w2(F.silu(gate) * hidden)


@fusable
def predicted(head: PackedLinear, norm: nn.RMSNorm, x_RD: Tensor) -> Tensor:
    """Return the logits (R, V)."""
    return head(rms_norm(x_RD, norm))


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Apply an RMS norm; on a few rows torch's own module takes four times as long."""
    return unit_rms(x, norm.eps) * norm.weight


def unit_rms(x: Tensor, eps: float | None) -> Tensor:
    """Compute ``x / √(mean(x²) + eps)`` over the last dimension."""
    return x * x.square().sum(-1, keepdim=True).mul_(1 / x.shape[-1]).add_(eps or 0.0).rsqrt_()


class DecodingBlock:
    """A block at one position, apart from attention itself: norms, packed linear layers, rotation."""

    def __init__(self, block: Block, rotary_2Tp: Tensor, rows: int) -> None:
        attn = block.attn
        mlp = block.mlp
        self.norm1 = block.norm1
        self.norm2 = block.norm2
        self.eps = attn.q_norm.eps
        layers = (attn.qkv, attn.proj, beside(mlp.w1, mlp.w3), mlp.w2)
        self.qkv, self.proj, self.w1_w3, self.w2 = (PackedLinear(layer, rows) for layer in layers)
        self.turning_T22h = turning(attn, rotary_2Tp)


def rotated(qk_R2Hh: Tensor, turning_22h: Tensor, eps: float | None) -> Tensor:
    """Normalise queries (scaled by 1/√h) and keys, (R, 2, H, h), and rotate them by a row of `turning`."""
    normed_R2Hh = unit_rms(qk_R2Hh, eps)
    neighbours_R2Hh = normed_R2Hh.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    own_21h, neighbour_21h = turning_22h[:, :, None]
    return torch.addcmul(normed_R2Hh * own_21h, neighbours_R2Hh, neighbour_21h)


def turning(attn: Attention, rotary_2Tp: Tensor) -> Tensor:
    """Multiply norm weights, and the queries' 1/√h, into a rotary table.

    Returns:
        (T, 2, 2, h): the factors of a channel and those of its neighbour in the pair, whose products are then added:
        ``x·w·cos ∓ x'·w'·sin``; of each, those for queries and those for keys.
    """
    # In float32, as in `rotate`, and rounded to the weights' dtype only at the end.
    weight_2h = torch.stack([attn.q_norm.weight * attn.q_norm.weight.shape[0] ** -0.5, attn.k_norm.weight]).float()
    swapped_2h = weight_2h.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    cosine_Tp, sine_Tp = rotary_2Tp
    cosine_Th = cosine_Tp.repeat_interleave(2, -1)
    sine_Th = torch.stack([-sine_Tp, sine_Tp], -1).flatten(-2)
    own_T2h = cosine_Th[:, None] * weight_2h
    neighbour_T2h = sine_Th[:, None] * swapped_2h
    return torch.stack([own_T2h, neighbour_T2h], dim=1).type_as(attn.q_norm.weight)
