"""The distinct classes of a batch, for what a decoder computes once for each class.

Counting them makes a GPU wait, which it may not do while a graph is recorded. So whoever records one counts first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_known: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("distinct_classes", default=None)


@contextlib.contextmanager
def known_distinct(classes_U: Tensor, row_B: Tensor) -> Iterator[None]:
    """Within this context, `distinct_classes` returns these for a batch on a GPU."""
    token = _known.set((classes_U, row_B))
    try:
        yield
    finally:
        _known.reset(token)


def distinct_classes(classes_B: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the distinct classes (U,) of a batch, and which of them each sample has, (B,); None if each has its own.

    On a GPU, where nobody has counted them, each sample has its own.
    """
    if classes_B.device.type == "cpu":
        classes_U, row_B = torch.unique(classes_B, return_inverse=True)
        return (classes_B, None) if torch.equal(classes_U, classes_B) else (classes_U, row_B)
    known = _known.get()
    if known is None:
        return classes_B, None
    # A decoder may have repeated its last sample, to have an even number.
    classes_U, row_B = known
    return classes_U, torch.cat([row_B, row_B[-1:]]) if len(row_B) < len(classes_B) else row_B
