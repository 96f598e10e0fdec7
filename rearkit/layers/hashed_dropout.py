"""Dropout for compiled code on a GPU, whose random numbers cost a few integer operations.

torch's compiler draws each entry's number with Philox, of whose four outputs it uses one: at S's MLP that takes three
times as long as reading and writing the entries, and the mask is kept for the backward pass. Here an entry is kept or
dropped by a hash of its index and of 64 random bits, so that the compiler computes it again instead of keeping it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The multipliers of lowbias32 (Chris Wellons, "Prospecting for Hash Functions", 2018), as signed 32-bit integers.
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32
# Entries that 32-bit indices tell apart.
MOST = 2**31


def hashed_dropout(x: Tensor, rate: float) -> Tensor:
    """Apply dropout; the rate is rounded to a multiple of 2^-32, and ``x`` has fewer than 2^31 entries."""
    # Drawn in int64, since the upper end of the range is beyond int32.
    seeds = torch.randint(-MOST, MOST, (2,), device=x.device).to(torch.int32)
    return torch.where(kept(x.shape, seeds, rate), x * (1 / (1 - rate)), 0.0)


def kept(shape: torch.Size, seeds: Tensor, rate: float) -> Tensor:
    """Return which entries a dropout keeps, bool: the same for the same two seeds, int32."""
    index = torch.arange(shape.numel(), dtype=torch.int32, device=seeds.device).view(shape)
    # Both seeds: with one alone, a mask would be another's with its entries in another order.
    mixed = (_shifted(index ^ seeds[0], 16)) * FIRST ^ seeds[1]
    mixed = _shifted(_shifted(mixed, 15) * SECOND, 16)
    # The hash is uniform over [-2^31, 2^31).
    return mixed >= round(rate * 2**32) - MOST


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Return ``x ^ (x >> bits)`` with zeros shifted in, which torch does only for unsigned integers."""
    return x ^ ((x >> bits) & (2 ** (32 - bits) - 1))
