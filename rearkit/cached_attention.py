"""Attention of one new place to a static cache, whose rows give the same bits in any batch on a CPU; for decoders.

Shapes: R rows, H heads, T places of the buffers, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGN = 16  # floats: a cache line, and AVX-512's vector


def cache_length(places: int) -> int:
    """Round up to how long a buffer must be, so that each row of scores begins at a cache line."""
    return -(-places // ALIGN) * ALIGN


def attend_to_cache(query_RHd: Tensor, keys_RHTd: Tensor, values_RHTd: Tensor, end: int) -> Tensor:
    """Attend to the first ``end`` places, (R, H·d).

    On a CPU it is spelt out over aligned buffers: `F.scaled_dot_product_attention` uses scratch memory whose alignment,
    and with it the rounding, differs from thread to thread. On CUDA, that function is used, for its flash kernel.

    Args:
        query_RHd: scaled already.
        keys_RHTd: T from `cache_length`; finite also where nothing is written yet, since that is multiplied by zero.
        values_RHTd: likewise.
        end: how many places there are, with the newest.
    """
    R, H, d = query_RHd.shape
    if query_RHd.device.type != "cpu":
        keys, values = keys_RHTd[:, :, :end], values_RHTd[:, :, :end]
        return F.scaled_dot_product_attention(query_RHd[:, :, None], keys, values, scale=1.0).reshape(R, H * d)
    keys, values = (cached.view(R * H, -1, d)[:, : cache_length(end)] for cached in (keys_RHTd, values_RHTd))
    scores = torch.bmm(query_RHd.reshape(R * H, 1, d), keys.transpose(1, 2))
    scores[:, :, end:] = -torch.inf
    return torch.bmm(scores.softmax(-1), values).view(R, H * d)
