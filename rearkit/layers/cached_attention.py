"""Attention of one new place to a static cache, whose rows give the same bits in any batch on a CPU; for decoders.

Shapes: R rows, H heads, T places of the buffers, d width of a head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ALIGN = 16  # floats: a cache line, and AVX-512's vector
# Not cuDNN, torch's first choice on Hopper: it plans anew for each number of places, also while a graph is recorded.
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def cache_length(places: int) -> int:
    """Round up to how long a buffer must be, so that each row of scores begins at a cache line."""
    return -(-places // ALIGN) * ALIGN


def attend_to_cache(query_RHd: Tensor, keys_RHTd: Tensor, values_RHTd: Tensor, end: int) -> Tensor:
    """Attend to the first ``end`` places, (R, H·d).

    On a CPU it is spelt out over aligned buffers: `F.scaled_dot_product_attention` uses scratch memory whose alignment,
    and with it the rounding, differs from thread to thread. A weighted sum of values is a bag of embeddings to torch,
    whose kernel for that reads as fast as memory gives, twice as fast as a product of matrices with one row does. On
    CUDA, that function is used, for its flash kernel.

    Args:
        query_RHd: scaled already.
        keys_RHTd: contiguous, T from `cache_length`; ``values_RHTd`` likewise.
        end: how many places there are, with the newest.
    """
    R, H, d = query_RHd.shape
    if query_RHd.device.type != "cpu":
        keys, values = keys_RHTd[:, :, :end], values_RHTd[:, :, :end]
        with sdpa_kernel(FUSED):
            out = F.scaled_dot_product_attention(query_RHd[:, :, None], keys, values, scale=1.0)
        return out.reshape(R, H * d)
    keys, values = (cached.view(R * H, -1, d) for cached in (keys_RHTd, values_RHTd))
    scores = torch.bmm(keys[:, : cache_length(end)], query_RHd.reshape(R * H, 1, d).transpose(1, 2))
    weights = scores.squeeze(-1)[:, :end].softmax(-1)
    bags = _bags(R * H, keys.shape[1], end)
    out = torch.embedding_bag(values.view(-1, d), *bags, mode=0, per_sample_weights=weights.view(-1))[0]
    return out.view(R, H * d)


@lru_cache(maxsize=2)  # all layers of a step ask for the same
def _bags(number: int, length: int, end: int) -> tuple[Tensor, Tensor]:
    """Return which rows of values, ``length`` to each bag's buffer, go into the bags, and where each bag begins."""
    first = torch.arange(0, number * length, length, dtype=torch.int64)
    rows = first[:, None] + torch.arange(end, dtype=torch.int64)
    return rows.flatten(), torch.arange(0, number * end, end, dtype=torch.int64)
