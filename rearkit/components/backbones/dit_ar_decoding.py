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
        self.heads = backbone.num_heads
        self.length = 0
        table_TD = (backbone.pos_embed + backbone.target_table())[0].detach()
        self.place_TD = table_TD
        places = len(table_TD)
        self.blocks = [DecodingBlock(block, self.rows) for block in backbone.blocks]
        self.final_eps = backbone.adaln_before_head.norm_final.eps
        self.head = PackedLinear(backbone.lm_head, self.rows)
        self.modulations = Modulations(backbone, self._padded(classes_B))
        shape = (backbone.num_layers, self.rows, self.heads, cache_length(places), backbone.head_dim)
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
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulations.at(place, layer).chunk(6, dim=-1)
            attended = self._attend(block, torch.addcmul(shift1, torch.layer_norm(x_RD, *block.norm1), scale1), layer)
            x_RD = torch.addcmul(x_RD, gate1, block.proj(attended))
            hidden = block.fc1(torch.addcmul(shift2, torch.layer_norm(x_RD, *block.norm2), scale2))
            x_RD = torch.addcmul(x_RD, gate2, block.fc2(hidden))
        self.length += 1
        if not predict:
            return x_RD[:0]
        scale, shift = self.modulations.at(place, len(self.blocks)).chunk(2, dim=-1)
        normed = F.layer_norm(x_RD, x_RD.shape[1:], eps=self.final_eps)
        return self.head(torch.addcmul(shift, normed, scale))[: self.batch]

    def _attend(self, block: DecodingBlock, x_RD: Tensor, layer: int) -> Tensor:
        """Attend from the newest position to itself and to those before it: (R, D) to (R, D)."""
        qkv_R3Hd = block.qkv(x_RD).view(len(x_RD), 3, self.heads, -1)
        # Also normalises the values, unused: one call is faster than slicing first.
        normed_R3Hd = torch.layer_norm(qkv_R3Hd, qkv_R3Hd.shape[-1:], eps=block.qk_eps)
        keys = self.keys[layer]
        values = self.values[layer]
        keys[:, :, self.length] = normed_R3Hd[:, 1]
        values[:, :, self.length] = qkv_R3Hd[:, 2]
        q_RHd = torch.addcmul(block.q_bias, normed_R3Hd[:, 0], block.q_weight)
        return attend_to_cache(q_RHd, keys, values, self.length + 1)

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


class Modulations:
    """The modulations of all layers and rows, computed for many positions ahead; 1 is already added to the scales.

    On a CPU, rows of the same class share theirs. Elsewhere each row has its own, since counting the distinct classes
    would make the device wait.
    """

    def __init__(self, backbone: Any, classes_R: Tensor) -> None:
        classes_U = classes_R
        self.row_R = None
        if classes_R.device.type == "cpu":
            classes_U, row_R = classes_R.unique(return_inverse=True)
            self.row_R = None if torch.equal(classes_U, classes_R) else row_R
        self.embedding_UD = backbone.embeddings(backbone.class_ids(classes_U))
        self.place_TD = backbone.timesteps_embeddings[0].detach()
        modulated: list[Any] = [*backbone.blocks, backbone.adaln_before_head]
        self.ahead = min(max(1, MODULATION_ROWS // len(classes_U)), len(self.place_TD))
        rows = self.ahead * len(classes_U)
        self.products = [PackedLinear(module.adaLN_modulation[1], rows) for module in modulated]
        self.computed = range(0)
        # (P, U, 6·D) for each block, and (P, U, 2·D) for the last norm.
        self.of_layer: list[Tensor] = []

    def at(self, place: int, layer: int) -> Tensor:
        """Return the rows' modulations at a position in a layer; the layer after the last block is the final norm."""
        if place not in self.computed:
            self._compute(place)
        out_UM = self.of_layer[layer][place - self.computed.start]
        return out_UM if self.row_R is None else out_UM.index_select(0, self.row_R)

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
