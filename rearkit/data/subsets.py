"""Which images to look at where not all are: never the first ones, since sets are often sorted by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rearkit.system.devices import derive_seed


def drawn(size: int, most: int) -> np.ndarray:
    """Return at most ``most`` of the indices 0 to size - 1, sorted, the same ones each time.

    One is drawn from each of ``most`` equal stretches: evenly spread, and yet without a fixed step, which could fall on
    one class where classes come in turn.
    """
    if size <= most:
        return np.arange(size)
    edges = np.arange(most + 1) * size // most
    return np.random.default_rng(derive_seed("subset")).integers(edges[:-1], edges[1:])


def drawn_of(counts: Sequence[int], most: int) -> list[np.ndarray]:
    """Return which samples of each shard to look at, ``most`` in all, where shards have ``counts`` samples."""
    chosen = drawn(sum(counts), most)
    ends = np.cumsum(counts)
    return [
        chosen[(chosen >= end - count) & (chosen < end)] - (end - count)
        for end, count in zip(ends, counts, strict=True)
    ]


def far_apart(size: int) -> list[int]:
    """Return the indices 0 to size - 1 in an order whose every beginning is spread over all of them.

    Bits are reversed (van der Corput): 0, then the middle, then the quarters.
    """
    bits = max(size - 1, 0).bit_length()
    reversed_ = (int(f"{index:0{bits}b}"[::-1], 2) if bits else 0 for index in range(1 << bits))
    return [index for index in reversed_ if index < size]
