"""Attention of one new position to a key and value cache, for decoders.

On a CPU, a row gives the same bits in any batch.

Shapes: R rows, H heads, T positions that the buffers hold, d width of a head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from rearkit.layers.fusing import has_working_triton

# Floats in a cache line, and in a vector register of AVX-512.
ALIGN = 16


def cache_length(places: int) -> int:
    """Return the length of a buffer for so many positions: rounded up, so that each row of scores is aligned."""
    return -(-places // ALIGN) * ALIGN


def attend_to_cache(query_RHd: Tensor, keys_RHTd: Tensor, values_RHTd: Tensor, end: int) -> Tensor:
    """Attend to the first ``end`` positions of a cache and return (R, H·d).

    Args:
        query_RHd: queries of the new position, already scaled by 1/√d.
        keys_RHTd: keys, contiguous, T from `cache_length`.
        values_RHTd: values, likewise.
        end: number of positions to attend to, the new one included.
    """
    R, H, d = query_RHd.shape
    if query_RHd.device.type == "cuda" and has_working_triton():
        from rearkit.layers.cached_attention_kernel import attend

        return attend(query_RHd, keys_RHTd, values_RHTd, end)
    if query_RHd.device.type != "cpu":
        return attend_by_products(query_RHd, keys_RHTd, values_RHTd, end)
    # Spelt out on a CPU: scaled_dot_product_attention uses scratch memory there whose alignment, and with it the
    # rounding, differs from thread to thread.
    keys, values = (cached.view(R * H, -1, d) for cached in (keys_RHTd, values_RHTd))
    # Scores are computed for a multiple of ALIGN keys; what lies behind `end` is cut off before the softmax.
    scores = torch.bmm(keys[:, : cache_length(end)], query_RHd.reshape(R * H, 1, d).transpose(1, 2))
    weights = scores.squeeze(-1)[:, :end].softmax(-1)
    # The weighted sum of values, as a sum over a bag of embeddings: torch's kernel for that reads values as fast as
    # memory delivers them, twice as fast as its product of one row with a matrix.
    bags = _bags(R * H, keys.shape[1], end)
    # Mode 0 is the sum.
    out = torch.embedding_bag(values.view(-1, d), *bags, mode=0, per_sample_weights=weights.view(-1))[0]
    return out.view(R, H * d)


def attend_by_products(query_RHd: Tensor, keys_RHTd: Tensor, values_RHTd: Tensor, end: int) -> Tensor:
    """Compute what `attend_to_cache` does, by torch's products of matrices.

    With one query, they are 2 to 3 times as fast as torch's flash attention on an H200, which is made for many.
    """
    # A single position has all the weight. For this product torch takes a kernel of Triton's, even without a compiler.
    if end == 1:
        return values_RHTd[:, :, 0].flatten(1)
    scores = query_RHd[:, :, None] @ keys_RHTd[:, :, :end].mT
    return (scores.softmax(-1) @ values_RHTd[:, :, :end]).flatten(1)


# Cached, since all layers of a step ask for the same.
@lru_cache(maxsize=2)
def _bags(number: int, length: int, end: int) -> tuple[Tensor, Tensor]:
    """Return the rows of values in each bag, ``length`` rows of the buffer apart, and where each bag begins."""
    first = torch.arange(0, number * length, length, dtype=torch.int64)
    rows = first[:, None] + torch.arange(end, dtype=torch.int64)
    return rows.flatten(), torch.arange(0, number * end, end, dtype=torch.int64)
