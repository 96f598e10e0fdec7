"""What stands between the sampler and a backbone's steps: rows, given tokens, and who watches or stops them.

Shapes: B samples, N tokens, V codes; a step has B rows, or 2B with guidance, whose second half is unconditional.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import attrs
import numpy as np
import torch
from torch import Tensor

DRAWN = -1
"""Stands for a token that is to be drawn, among those that are given."""


class Decoder(Protocol):
    """The part of `rearkit.contracts.Backbone` that sampling uses."""

    def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
        """Begin decoding for the given classes."""
        ...

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        """Append a token."""
        ...


@attrs.frozen(eq=False)
class Rows:
    """What the images of a batch are drawn from; all on the CPU.

    Attributes:
        classes_B: (B,) int64 in [0, C).
        uniform_BN: (B, N) float64 in [0, 1), the random number of each token.
        scale_B: (B,) float64, the guidance scale of each image.
        fixed_BN: (B, N) int64, given tokens, and `DRAWN` where one is to be drawn; None if all are.
    """

    classes_B: Tensor
    uniform_BN: Tensor
    scale_B: Tensor
    fixed_BN: Tensor | None = None

    def filled(self, size: int) -> Rows:
        """Return as many rows as ``size``, at least: the last one again and again."""
        row = torch.arange(max(size, len(self.classes_B))).clamp(max=len(self.classes_B) - 1)
        fixed_BN = None if self.fixed_BN is None else self.fixed_BN[row]
        return Rows(self.classes_B[row], self.uniform_BN[row], self.scale_B[row], fixed_BN)


@attrs.frozen
class Watched:
    """A decoder that shows the tokens of each `step` to a function first, which may raise InterruptedError."""

    decoder: Decoder
    watch: Callable[[Tensor], None]

    def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
        """Begin decoding for the given classes."""
        return self.decoder.start(classes_B)

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        """Append a token, unless it is to stop."""
        self.watch(tokens_B)
        return self.decoder.step(tokens_B, cache)


@attrs.define(eq=False)
class Forced:
    """A decoder that appends given tokens in place of those that were drawn for their positions.

    Every position is drawn all the same, so that a token's random number is its position's, whatever else is given.

    Attributes:
        decoder: the decoder.
        fixed_BN: (B, N) int64 on the decoder's device; `DRAWN` where a token is to be drawn.
        place: position of the token that comes next.
    """

    decoder: Decoder
    fixed_BN: Tensor
    place: int = 0

    def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
        """Begin decoding for the given classes."""
        self.place = 0
        return self.decoder.start(classes_B)

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        """Append the given token, or the drawn one where none is given."""
        fixed_B = self.fixed_BN[:, self.place]
        self.place += 1
        # With guidance, the unconditional half reads the same tokens.
        fixed_B = fixed_B.repeat(len(tokens_B) // len(fixed_B))
        # Chosen on the device: a look at the mask from here would stop a GPU at each step.
        return self.decoder.step(torch.where(fixed_B == DRAWN, tokens_B, fixed_B), cache)

    def whole(self, tokens_BN: Tensor) -> Tensor:
        """Return drawn tokens (B, N) with the given ones in their places."""
        return torch.where(self.fixed_BN == DRAWN, tokens_BN, self.fixed_BN)


def fixed_tokens(given: Any, known: Any, shape: tuple[int, int], codebook_size: int) -> Tensor | None:
    """Put given tokens and the mask of those that are known into one tensor, on the CPU.

    Args:
        given: (n, N), or (N,) for all samples alike, whole numbers; None if no tokens are given.
        known: as many booleans, True where the token is given; what ``given`` has elsewhere does not matter.
        shape: (n, N).
        codebook_size: V.

    Returns:
        (n, N) int64, `DRAWN` where a token is to be drawn; None if none is given.

    Raises:
        ValueError: one is given without the other, or a shape, a type or a token does not fit.
    """
    if (given is None) != (known is None):
        raise ValueError("given and known go together: the tokens, and where they are known")
    if given is None:
        return None
    tokens, mask = (torch.from_numpy(np.array(torch.as_tensor(some).cpu())) for some in (given, known))
    for name, some in (("given", tokens), ("known", mask)):
        if tuple(some.shape) not in (shape, shape[1:]):
            raise ValueError(
                f"{name} has the shape {tuple(some.shape)}; expected {shape}, or {shape[1:]} for all alike"
            )
    if mask.dtype != torch.bool or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"given must be whole numbers and known booleans; found {tokens.dtype} and {mask.dtype}")
    # uint16, as samples are stored, has few operations.
    tokens, mask = tokens.long().expand(shape), mask.expand(shape)
    chosen = tokens[mask]
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < codebook_size:
        raise ValueError(f"given tokens must lie in 0 to {codebook_size - 1} where they are known")
    return torch.where(mask, tokens, DRAWN)
