"""Decoding of `rearkit_llamagen.backbone.LlamaGenGPT`, one position at a time, with a static cache.

It computes what the training forward computes, to rounding. The differences:

- Linear layers are packed (`rearkit.PackedLinear`), the first two of a feed-forward layer as one.
- Keys and values are written into buffers of full length, and the single query needs no mask.
- The queries' factor 1/√h is part of the rotary table.

On a CPU, a row has the same bits in any batch: an odd number of rows is padded, and attention is
`rearkit.attend_to_cache`.

Shapes: B batch, R rows (B, padded), T positions, D width, H heads, h = D/H, V codes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit import PackedLinear, attend_to_cache, beside, cache_length, fusable


class Decoder:
    """A backbone's weights prepared for decoding, and the keys and values of one batch.

    Args:
        backbone: the backbone; changes of its weights after this have no effect here.
        batch: B.

    Attributes:
        length: positions in the cache.
        keys: (layers, R, H, T rounded up, h).
        values: likewise.
    """

    def __init__(self, backbone: Any, batch: int) -> None:
        self.batch = batch
        self.rows = batch + batch % 2
        self.length = 0
        self.blocks = [_Block(block, self.rows) for block in backbone.blocks]
        self.norm = backbone.norm
        self.output = PackedLinear(backbone.output, self.rows)
        weight = backbone.tok_embeddings.weight
        self.turning_T22h = rotation_factors(backbone.rotary_2Tp, weight.dtype)
        length = cache_length(1 + backbone.space.num_tokens)
        shape = (len(self.blocks), self.rows, backbone.num_heads, length, backbone.head_dim)
        self.keys = weight.new_empty(shape)
        self.values = weight.new_empty(shape)

    def advance(self, x_BD: Tensor) -> Tensor:
        """Append a position with embedding (B, D), and return the logits of the next token, (B, V)."""
        # The row that pads an odd batch is a copy of the last one; its logits are cut off at the end.
        x_RD = x_BD if self.rows == self.batch else torch.cat([x_BD, x_BD[-1:]])
        place = self.length
        for block, keys_RHTh, values_RHTh in zip(self.blocks, self.keys, self.values, strict=True):
            slots = keys_RHTh[:, :, place], values_RHTh[:, :, place]
            q_RHh = query(block, x_RD, self.turning_T22h[place], *slots)
            x_RD = rest_of_block(block, x_RD, attend_to_cache(q_RHh, keys_RHTh, values_RHTh, place + 1))
        self.length += 1
        return predicted(self.output, self.norm, x_RD)[: self.batch]


@fusable
def query(block: _Block, x_RD: Tensor, turning_22h: Tensor, key_RHh: Tensor, value_RHh: Tensor) -> Tensor:
    """Return the rotated queries of a position, (R, H, h), and fill its places in the cache."""
    qkv_R3Hh = block.wqkv(rms_norm(x_RD, block.attention_norm)).unflatten(-1, (3, *key_RHh.shape[1:]))
    qk_R2Hh = qkv_R3Hh[:, :2]
    swapped_R2Hh = qk_R2Hh.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    own_21h, other_21h = turning_22h[:, :, None]
    q_RHh, k_RHh = torch.addcmul(qk_R2Hh * own_21h, swapped_R2Hh, other_21h).unbind(1)
    key_RHh.copy_(k_RHh)
    value_RHh.copy_(qkv_R3Hh[:, 2])
    return q_RHh


@fusable
def rest_of_block(block: _Block, x_RD: Tensor, attended_RD: Tensor) -> Tensor:
    """Return what the block makes of its input and of what attention gathered, both (R, D)."""
    x_RD = x_RD + block.wo(attended_RD)
    gate, hidden = block.w1_w3(rms_norm(x_RD, block.ffn_norm)).chunk(2, dim=-1)
    return x_RD + block.w2(F.silu(gate) * hidden)


@fusable
def predicted(output: PackedLinear, norm: nn.RMSNorm, x_RD: Tensor) -> Tensor:
    """Return the logits, (R, V)."""
    return output(rms_norm(x_RD, norm))


class _Block:
    """A block's norms and packed layers."""

    def __init__(self, block: Any, rows: int) -> None:
        self.attention_norm = block.attention_norm
        self.ffn_norm = block.ffn_norm
        self.wqkv = PackedLinear(block.attention.wqkv, rows)
        self.wo = PackedLinear(block.attention.wo, rows)
        self.w1_w3 = PackedLinear(beside(block.feed_forward.w1, block.feed_forward.w3), rows)
        self.w2 = PackedLinear(block.feed_forward.w2, rows)


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Apply an RMS norm in float32, to a few rows, where torch's module is slower."""
    wide = x.float()
    mean_square = wide.square().sum(-1, keepdim=True).mul_(1 / x.shape[-1])
    return (wide * mean_square.add_(norm.eps or 0.0).rsqrt_()).type_as(x) * norm.weight


def rotation_factors(rotary_2Tp: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (T, 2, 2, h): factors of a channel and of its neighbour in the pair, each for scaled queries and for keys.

    The sum of both products is the rotated channel: ``x·cos - x'·sin`` for a pair's first, ``x·cos + x'·sin`` for its
    second.
    """
    cosine_Tp, sine_Tp = rotary_2Tp
    own_Th = cosine_Tp.repeat_interleave(2, dim=-1)
    other_Th = torch.stack([-sine_Tp, sine_Tp], dim=-1).flatten(-2)
    scale = own_Th.shape[-1] ** -0.5
    factors = [torch.stack([scale * one_Th, one_Th], dim=1) for one_Th in (own_Th, other_Th)]
    return torch.stack(factors, dim=1).to(dtype)
