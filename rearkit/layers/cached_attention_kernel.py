"""The Triton kernel of `rearkit.layers.cached_attention`: one query a head, as fast as memory delivers keys and values.

torch's flash kernel is made for many queries: with one, it multiplies tiles of 64 of which 63 are padding, and takes
four times as long (80 against 22 µs for 128 rows of 16 heads of 48 over 129 positions in bfloat16, on an H200).

Import it only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers of a tile of keys that two warps keep in registers.
TILE = 4096


# Not specialised for `end`: each specialisation is compiled at its first launch, which may not be within a CUDA graph.
@triton.jit(do_not_specialize=["end"])
def _attend(query, keys, values, out, end, places, WIDTH: tl.constexpr, PADDED: tl.constexpr, PLACES: tl.constexpr):  # type: ignore[no-untyped-def]
    # One program for each row and head. In 64 bits, since a cache may have more than 2^31 numbers.
    head = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, PADDED)
    real = channel < WIDTH
    q = tl.load(query + head * WIDTH + channel, mask=real, other=0.0).to(tl.float32)
    # The softmax is computed online: the largest score so far, and sums relative to it.
    largest = -float("inf")
    total = 0.0
    gathered = tl.zeros([PADDED], tl.float32)
    for start in range(0, end, PLACES):
        place = start + tl.arange(0, PLACES)
        offset = head * places * WIDTH + place[:, None] * WIDTH + channel[None, :]
        inside = (place < end)[:, None] & real[None, :]
        k = tl.load(keys + offset, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(values + offset, mask=inside, other=0.0).to(tl.float32)
        score = tl.where(place < end, tl.sum(k * q[None, :], 1), -float("inf"))
        larger = tl.maximum(largest, tl.max(score, 0))
        weight = tl.exp(score - larger)
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weight, 0)
        gathered = gathered * shrink + tl.sum(weight[:, None] * v, 0)
        largest = larger
    tl.store(out + head * WIDTH + channel, (gathered / total).to(out.dtype.element_ty), mask=real)


def attend(query_RHd: Tensor, keys_RHTd: Tensor, values_RHTd: Tensor, end: int) -> Tensor:
    """Attend to the first ``end`` positions, (R, H·d); arguments as in `attend_to_cache`, all contiguous."""
    R, H, d = query_RHd.shape
    query_RHd = query_RHd.contiguous()
    out = torch.empty_like(query_RHd)
    padded = triton.next_power_of_2(d)
    _attend[(R * H,)](
        query_RHd,
        keys_RHTd,
        values_RHTd,
        out,
        end,
        keys_RHTd.shape[2],
        WIDTH=d,
        PADDED=padded,
        PLACES=max(1, TILE // padded),
        num_warps=2,
    )
    return out.view(R, H * d)
