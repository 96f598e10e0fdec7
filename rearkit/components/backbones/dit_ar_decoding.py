"""Decoding of `rearkit.components.backbones.dit_ar.DiTAR`, a place at a time, over a static cache.

What it does otherwise than the training forward, with the same result to rounding (``benchmarks/sampling.py`` has the
effect of each):

- Modulations depend on class and place only. They are computed for many places ahead, in one product per layer, once
  for each distinct class: a third of a block's weights is then read every hundred places instead of at every one.
- Linear layers are packed (`rearkit.layers.packed_linear`).
- Keys and values lie in buffers of full length; the single query needs no mask.
- Only places that predict a token pass the head.

On a CPU, a row's result has the same bits whatever else is in the batch and however many threads compute it, where D is
a multiple of 16. So rows are padded to an even number, and attention is `rearkit.layers.cached_attention`.

Shapes: R rows (B, padded), U distinct classes among them, P places ahead; the others as in `dit_ar`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.layers.cached_attention import attend_to_cache, cache_length
from rearkit.layers.packed_linear import PackedLinear

if TYPE_CHECKING:
    from rearkit.components.backbones.dit_ar import DiTAR
    from rearkit.components.backbones.dit_ar_blocks import Block

MODULATION_ROWS = 512  # rows of one product of modulations: enough for the GEMM, and 190 MB at the published S size


class Decoder:
    """A backbone's weights ready for decoding, and the keys and values of one batch.

    Args:
        backbone: its weights are taken as they are now.
        classes_B: (B,) int64 in [0, C].

    Attributes:
        keys: (layers, R, H, T rounded up, D/H), filled up to `length` places, normalised without weight and bias, which
            queries take over; ``values`` likewise, as they come.
    """

    def __init__(self, backbone: DiTAR, classes_B: Tensor) -> None:
        self.batch, self.rows = len(classes_B), len(classes_B) + len(classes_B) % 2
        self.heads, self.length = backbone.num_heads, 0
        table_TD = (backbone.pos_embed + backbone.target_table())[0].detach()
        self.place_TD, places = table_TD, len(table_TD)
        self.blocks = [DecodingBlock(block, self.rows) for block in backbone.blocks]  # type: ignore[arg-type]
        self.final_eps = backbone.adaln_before_head.norm_final.eps
        self.head = PackedLinear(backbone.lm_head, self.rows)
        self.modulations = Modulations(backbone, self._padded(classes_B))
        shape = (backbone.num_layers, self.rows, self.heads, cache_length(places), backbone.head_dim)
        self.keys, self.values = table_TD.new_empty(shape), table_TD.new_empty(shape)

    def advance(self, x_BD: Tensor, predict: bool = True) -> Tensor:
        """Append a place.

        Args:
            x_BD: (B, D), what stands there, without its position.
            predict: whether to return logits, (B, V); else nothing.
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
        """Attend from the newest place to itself and to those before it: (R, D) to (R, D)."""
        qkv_R3Hd = block.qkv(x_RD).view(len(x_RD), 3, self.heads, -1)
        normed_R3Hd = torch.layer_norm(qkv_R3Hd, qkv_R3Hd.shape[-1:], eps=block.qk_eps)  # of values for nothing
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, self.length] = normed_R3Hd[:, 1]
        values[:, :, self.length] = qkv_R3Hd[:, 2]
        q_RHd = torch.addcmul(block.q_bias, normed_R3Hd[:, 0], block.q_weight)
        return attend_to_cache(q_RHd, keys, values, self.length + 1)

    def _padded(self, x: Tensor) -> Tensor:
        """Repeat the last row where the number of rows is odd."""
        return x if len(x) == self.rows else torch.cat([x, x[-1:]])


class DecodingBlock:
    """What a block does to one place, apart from attention: its norms and its packed linear layers."""

    def __init__(self, block: Block, rows: int) -> None:
        self.norm1, self.norm2 = (
            (norm.normalized_shape, norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2)
        )
        # Scores are q·k/√(D/H) with q and k behind norms. The key norm's weight goes over to the query, and its bias
        # adds the same to a query's scores at all places, which softmax does not see: so keys are only normalised.
        q_norm, k_norm = block.attn.q_norm, block.attn.k_norm
        scale, self.qk_eps = k_norm.weight * len(k_norm.weight) ** -0.5, q_norm.eps
        self.q_weight, self.q_bias = q_norm.weight * scale, q_norm.bias * scale
        self.qkv, self.proj = PackedLinear(block.attn.qkv, rows), PackedLinear(block.attn.proj, rows)
        self.fc1, self.fc2 = PackedLinear(block.mlp.fc1, rows, gelu=True), PackedLinear(block.mlp.fc2, rows)


class Modulations:
    """The modulations of all layers and rows, computed for many places ahead.

    Their scales have 1 added. On a CPU, rows of one class share theirs; elsewhere each row has its own, since to count
    the distinct ones would make the device wait.
    """

    def __init__(self, backbone: DiTAR, classes_R: Tensor) -> None:
        classes_U, self.row_R = classes_R, None
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
        self.of_layer: list[Tensor] = []  # (P, U, 6·D) each, and (P, U, 2·D) for the last norm

    def at(self, place: int, layer: int) -> Tensor:
        """Modulations of the rows at a place in a layer; the layer past the last is the norm before the head."""
        if place not in self.computed:
            self._compute(place)
        out_UM = self.of_layer[layer][place - self.computed.start]
        return out_UM if self.row_R is None else out_UM.index_select(0, self.row_R)

    def _compute(self, start: int) -> None:
        end = min(start + self.ahead, len(self.place_TD))
        start = end - self.ahead  # as many rows as the layers are packed for, if some of them for a second time
        self.of_layer.clear()  # before the next are made, or there would be room for two
        places = self.ahead
        U, D = self.embedding_UD.shape
        condition = F.silu(self.place_TD[start:end, None] + self.embedding_UD).view(places * U, D)
        for product in self.products:
            out_PUM = product(condition).view(places, U, -1)
            scales = (1, 4) if out_PUM.shape[-1] == 6 * D else (0,)
            for part in scales:
                out_PUM[:, :, part * D : (part + 1) * D] += 1
            self.of_layer.append(out_PUM)
        self.computed = range(start, end)
