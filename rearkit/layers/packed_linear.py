"""Linear layers for decoding, where a matrix is multiplied by only a few rows at a time.

On a CPU, torch multiplies with MKL, whose kernels for 2 to 64 rows are slow: at 2 rows, it read a matrix of (3072, 768)
at 6 GB/s where memory delivered 23, and at 64 rows it reached two thirds of the machine's arithmetic. oneDNN, which
torch includes too, comes near both limits once it has packed the matrix in its own layout. For large matrices it is
fastest if the layer is presented as a 1×1 convolution over a picture one pixel high, which costs 15 µs a call.

oneDNN also sums in an order that depends neither on the number of rows nor on the number of threads, so that a row
gives the same bits in any batch. MKL does not promise that.

Weights in 16 bits use FBGEMM, also part of torch: at few rows, time goes into reading weights, and half the bytes are
read. ``benchmarks/sampling.py`` measures the speed, the tests the bits. By itself, with AVX-512, packing makes decoding
3.2, 2.1, 1.2 times as fast at batch 1, 4, 32 (docs/performance/sampling.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.errors import RearkitError
from rearkit.layers import private_operators as private

# Values that GELU takes at a time: as many as torch gives to two threads. With more threads, a part might begin in the
# middle of a vector register, and torch computes the rest of a register by another function, with another rounding.
GELU_PIECE = 2**16
# FBGEMM sums in the same order for all numbers of rows that are multiples of this; for some others, in another.
HALF_ROWS = 3
# Entries of a matrix from which a convolution is faster in spite of its 15 µs.
CONVOLVED = 2**20

# The layers packed in float16 within `half_weights`; None outside of it. A context variable, since backbones build
# their layers deep inside `start`, which has no argument for it.
_halved: ContextVar[list[PackedLinear] | None] = ContextVar("half_weights", default=None)


@contextlib.contextmanager
def half_weights(on: bool = True) -> Iterator[None]:
    """Within this context, layers are packed with weights rounded to float16; arithmetic stays float32.

    Weights beyond float16's range (±65,504) become its largest number. `can_halve` says where this works.

    Raises:
        RearkitError: at the end, if no layer was packed this way.
    """
    halved: list[PackedLinear] = []
    token = _halved.set(halved if on else None)
    try:
        yield
    finally:
        _halved.reset(token)
    # Reported, since a user would otherwise take float32's results and speed for those of float16.
    if on and not halved:
        raise RearkitError(
            '[sample] precision: "fp16-weights" does nothing here, since the backbone decodes without '
            "rearkit.PackedLinear, or not in float32; leave it out"
        )


class PackedLinear:
    """A copy of an `nn.Linear` for decoding, with an optional exact GELU after it; a part for backbones.

    Where it cannot be packed (not on a CPU, a dtype that oneDNN does not support, or a torch without the operators that
    `private_operators` names), it is the plain layer.

    Args:
        linear: the layer. On a CPU, later changes of its weights have no effect here.
        rows: number of rows of the inputs. Other numbers work, but more slowly: oneDNN's layout depends on it and would
            be converted at each call.
        gelu: whether a GELU follows.
    """

    def __init__(self, linear: nn.Linear, rows: int, gelu: bool = False) -> None:
        self.weight = linear.weight.detach()
        self.gelu = gelu
        self.bias: Tensor | None = None if linear.bias is None else linear.bias.detach()
        self.packed = can_pack(self.weight)
        self.convolved = self.weight.numel() >= CONVOLVED
        self.halved: Any = None
        halved = _halved.get()
        if halved is not None and self.packed and can_halve():
            halved.append(self)
            self.halved = private.pack_half(self.weight, self.bias)
            # Only the packed copy is needed from here on, so the reference to the original is dropped.
            del self.weight
        elif self.packed and not self.convolved:
            self.weight = private.pack_linear(self.weight, rows)
        elif self.packed:
            outputs, inputs = self.weight.shape
            # The strides of a channels-last tensor, spelt out: a reshape gives dimensions of size 1 other strides.
            kernel = self.weight.contiguous().as_strided((outputs, inputs, 1, 1), (inputs, 1, inputs, inputs))
            self.weight = private.pack_convolution(kernel, (1, inputs, 1, rows))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the layer: (rows, inputs) to (rows, outputs)."""
        if not self.packed:
            out = F.linear(x, self.weight, self.bias)
            return F.gelu(out) if self.gelu else out
        if self.halved is not None:
            padded = F.pad(x, (0, 0, 0, -len(x) % HALF_ROWS))
            return self._finished(private.half_linear(padded, self.halved)[: len(x)])
        if not self.convolved:
            # oneDNN sums a single row in another order, so it is given twice.
            several = x if len(x) > 1 else x.expand(2, -1)
            return self._finished(private.linear(several, self.weight, self.bias)[: len(x)])
        rows, inputs = x.shape
        # Rows become the pixels of a picture one pixel high, inputs its channels, again with channels last.
        picture = x.contiguous().as_strided((1, inputs, 1, rows), (rows * inputs, 1, rows * inputs, inputs))
        out = private.convolution(picture, self.weight, self.bias)
        return self._finished(out.as_strided((rows, out.shape[1]), (out.shape[1], 1)))

    def _finished(self, out: Tensor) -> Tensor:
        # By torch, since oneDNN's GELU takes five times as long.
        if self.gelu:
            for piece in out.view(-1).split(GELU_PIECE) if out.numel() > GELU_PIECE else [out]:
                torch.ops.aten.gelu_.default(piece)
        return out


def can_halve() -> bool:
    """Return whether weights can be packed in float16."""
    return private.has_fbgemm()


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN can pack a weight: on a CPU, float32, or bfloat16 if the CPU computes with it."""
    return weight.device.type == "cpu" and private.has_onednn(weight.dtype)


def beside(one: nn.Linear, other: nn.Linear) -> nn.Linear:
    """Return one layer with the outputs of both, those of ``one`` first; neither may have a bias.

    A part for backbones, whose `PackedLinear` then is one product instead of two.
    """
    # On the meta device, so that no weights are drawn only to be replaced.
    both = nn.Linear(one.in_features, one.out_features + other.out_features, bias=False, device="meta")
    both.weight = nn.Parameter(torch.cat([one.weight, other.weight]), requires_grad=False)
    return both
