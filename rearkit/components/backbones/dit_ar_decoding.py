"""Decoding of `rearkit.components.backbones.dit_ar.DiTAR`, one position at a time, with a static cache.

The result equals that of the training forward to rounding. The differences (``benchmarks/sampling.py`` measures the
effect of each):

- Modulations depend on class and position only. They are computed for many positions ahead, in one product per layer,
  once for each distinct class. A third of a block's weights is then read every hundred positions, not at every one.
- Linear layers are packed (`rearkit.layers.packed_linear`).
- Keys and values are in buffers of full length; the single query needs no mask.
- Only positions that predict a token go through the head.

On a CPU, a row's result has the same bits whatever else is in the batch and however many threads compute it, if D is
a multiple of 16. For this, rows are padded to an even number and attention is `rearkit.layers.cached_attention`.

Shapes: R rows (B, padded), U distinct classes among them, P positions ahead; the others as in `dit_ar`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.components.backbones.dit_ar_blocks import Block
from rearkit.layers.cached_attention import attend_to_cache, cache_length
from rearkit.layers.distinct_classes import distinct_classes
from rearkit.layers.fusing import fusable
from rearkit.layers.packed_linear import PackedLinear

# Rows in one product of modulations: enough for an efficient product, and 190 MB at the published S size.
MODULATION_ROWS = 512


class Decoder:
    """A backbone's weights prepared for decoding, and the keys and values of one batch.

    Args:
        backbone: the backbone; its weights are read now, later changes have no effect.
        classes_B: (B,) int64 in [0, C].

    Attributes:
        keys: (layers, R, H, T rounded up, D/H), filled up to `length` positions; normalised, without the norm's weight,
            which the queries take over, and without its bias, which has no effect.
        values: likewise, as they come.
    """

    def __init__(self, backbone: Any, classes_B: Tensor) -> None:
        self.batch = len(classes_B)
        self.rows = len(classes_B) + len(classes_B) % 2
        self.length = 0
        table_TD = (backbone.pos_embed + backbone.target_table())[0].detach()
        self.place_TD = table_TD
        places = len(table_TD)
        self.blocks = [DecodingBlock(block, self.rows) for block in backbone.blocks]
        self.final_eps = backbone.adaln_before_head.norm_final.eps
        self.head = PackedLinear(backbone.lm_head, self.rows)
        self.modulations = Modulations(backbone, self._padded(classes_B))
        shape = (backbone.num_layers, self.rows, backbone.num_heads, cache_length(places), backbone.head_dim)
        self.keys = table_TD.new_empty(shape)
        self.values = table_TD.new_empty(shape)

    def advance(self, x_BD: Tensor, predict: bool = True) -> Tensor:
        """Append a position.

        Args:
            x_BD: (B, D), the embedding at this position, without the position embedding.
            predict: whether to compute logits.

        Returns:
            logits, (B, V); an empty tensor without ``predict``.
        """
        place = self.length
        x_RD = self._padded(x_BD) + self.place_TD[place]
        for layer, block in enumerate(self.blocks):
            modulation = self.modulations.at(place, layer)
            keys, values = self.keys[layer], self.values[layer]
            q_RHd = query(block, x_RD, modulation, keys[:, :, place], values[:, :, place])
            attended_RD = attend_to_cache(q_RHd, keys, values, place + 1)
            x_RD = rest_of_block(block, x_RD, modulation, attended_RD)
        self.length += 1
        if not predict:
            return x_RD[:0]
        return predicted(self.head, self.final_eps, x_RD, self.modulations.at(place, len(self.blocks)))[: self.batch]

    def _padded(self, x: Tensor) -> Tensor:
        """Repeat the last row if the number of rows is odd."""
        return x if len(x) == self.rows else torch.cat([x, x[-1:]])


class DecodingBlock:
    """A block at one position, apart from attention: its norms and its packed linear layers."""

    def __init__(self, block: Block, rows: int) -> None:
        self.norm1, self.norm2 = (
            (norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2)
        )
        # Scores are q·k/√(D/H), with q and k normalised. The key norm's weight goes into the query instead. Its
        # bias adds the same number to all of a query's scores, which softmax ignores. So keys are only normalised.
        q_norm = block.attn.q_norm
        k_norm = block.attn.k_norm
        scale = k_norm.weight * len(k_norm.weight) ** -0.5
        self.qk_eps = q_norm.eps
        self.q_weight = q_norm.weight * scale
        self.q_bias = q_norm.bias * scale
        self.qkv = PackedLinear(block.attn.qkv, rows)
        self.proj = PackedLinear(block.attn.proj, rows)
        self.fc1 = PackedLinear(block.mlp.fc1, rows, gelu=True)
        self.fc2 = PackedLinear(block.mlp.fc2, rows)


# The modulations of the distinct classes, (U, m·D), and the row of each sample, (R,), or None if each has its own.
Modulation = tuple[Tensor, Tensor | None]


def parts(modulation: Modulation, number: int) -> tuple[Tensor, ...]:
    """Return the parts of each sample's modulation, each (R, D)."""
    out_UM, row_R = modulation
    return (out_UM if row_R is None else out_UM.index_select(0, row_R)).chunk(number, dim=-1)


@fusable
def query(block: DecodingBlock, x_RD: Tensor, modulation: Modulation, key_RHd: Tensor, value_RHd: Tensor) -> Tensor:
    """Return the queries (R, H, d) of a position, and write its keys and values to where the cache holds them."""
    shift, scale, *_ = parts(modulation, 6)
    normed_RD = torch.addcmul(shift, torch.layer_norm(x_RD, *block.norm1), scale)
    qkv_R3Hd = block.qkv(normed_RD).view(len(x_RD), 3, *key_RHd.shape[1:])
    # Also normalises the values, unused: one call is faster than slicing first.
    normed_R3Hd = torch.layer_norm(qkv_R3Hd, qkv_R3Hd.shape[-1:], eps=block.qk_eps)
    key_RHd.copy_(normed_R3Hd[:, 1])
    value_RHd.copy_(qkv_R3Hd[:, 2])
    return torch.addcmul(block.q_bias, normed_R3Hd[:, 0], block.q_weight)


@fusable
def rest_of_block(block: DecodingBlock, x_RD: Tensor, modulation: Modulation, attended_RD: Tensor) -> Tensor:
    """Return the block's output (R, D), from its input and what attention gathered."""
    _, _, gate1, shift2, scale2, gate2 = parts(modulation, 6)
    x_RD = torch.addcmul(x_RD, gate1, block.proj(attended_RD))
    hidden = block.fc1(torch.addcmul(shift2, torch.layer_norm(x_RD, *block.norm2), scale2))
    return torch.addcmul(x_RD, gate2, block.fc2(hidden))


@fusable
def predicted(head: PackedLinear, eps: float, x_RD: Tensor, modulation: Modulation) -> Tensor:
    """Return the logits (R, V)."""
    # Scale before shift, unlike in the blocks.
    scale, shift = parts(modulation, 2)
    return head(torch.addcmul(shift, F.layer_norm(x_RD, x_RD.shape[1:], eps=eps), scale))


class Modulations:
    """The modulations of all layers and rows, computed for many positions ahead; 1 is already added to the scales.

    Rows of the same class share theirs, where `rearkit.layers.distinct_classes` knows the classes.
    """

    def __init__(self, backbone: Any, classes_R: Tensor) -> None:
        classes_U, self.row_R = distinct_classes(classes_R)
        self.embedding_UD = backbone.embeddings(backbone.class_ids(classes_U))
        self.place_TD = backbone.timesteps_embeddings[0].detach()
        modulated: list[Any] = [*backbone.blocks, backbone.adaln_before_head]
        self.ahead = min(max(1, MODULATION_ROWS // len(classes_U)), len(self.place_TD))
        rows = self.ahead * len(classes_U)
        self.products = [PackedLinear(module.adaLN_modulation[1], rows) for module in modulated]
        self.computed = range(0)
        # (P, U, 6·D) for each block, and (P, U, 2·D) for the last norm.
        self.of_layer: list[Tensor] = []

    def at(self, place: int, layer: int) -> Modulation:
        """Return the modulations at a position in a layer; the layer after the last block is the final norm."""
        if place not in self.computed:
            self._compute(place)
        out_UM = self.of_layer[layer][place - self.computed.start]
        if self.row_R is None or out_UM.device.type != "cpu":
            return out_UM, self.row_R
        # Gathered once on a CPU; a GPU's compiler makes the gathering part of what reads it.
        return out_UM.index_select(0, self.row_R), None

    def _compute(self, start: int) -> None:
        end = min(start + self.ahead, len(self.place_TD))
        # Always as many rows as the layers are packed for; at the end, some are computed a second time.
        start = end - self.ahead
        # Cleared before the next are made, so that memory holds only one set.
        self.of_layer.clear()
        places = self.ahead
        U, D = self.embedding_UD.shape
        condition = F.silu(self.place_TD[start:end, None] + self.embedding_UD).view(places * U, D)
        for product in self.products:
            out_PUM = product(condition).view(places, U, -1)
            # The parts that are scales: of shift, scale, gate, shift, scale, gate in a block, of scale, shift in the
            # last norm.
            scales = (1, 4) if out_PUM.shape[-1] == 6 * D else (0,)
            for part in scales:
                out_PUM[:, :, part * D : (part + 1) * D] += 1
            self.of_layer.append(out_PUM)
        self.computed = range(start, end)
