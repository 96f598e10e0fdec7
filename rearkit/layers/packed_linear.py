"""Linear layers for decoding, where a matrix meets a handful of rows at a time.

On a CPU, torch multiplies by MKL, whose kernels for 2 to 64 rows are poor: at 2 rows it read a matrix of (3072, 768) at
6 GB/s where memory gave 23, and at 64 rows it made two thirds of the arithmetic that the machine can do. oneDNN, which
comes with torch too, is near both floors once it has packed the matrix in its own layout; for large matrices nearest
where it is told that the layer is a 1×1 convolution over a picture one pixel high, which costs 15 µs a call. Its
kernels also sum in an order that does not depend on the number of rows, nor on the number of threads, which MKL's do
not promise: a row gives the same bits in any batch. Weights in 16 bits are FBGEMM's part, also in torch: half of the
bytes to read, which is what time goes to at few rows. ``benchmarks/sampling.py`` measures speed, the tests the bits.
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

# Values at a time: as many as torch gives to two threads. More of them might divide a tensor where a vector register
# does not begin, and what is left over there is computed by another function, with another rounding.
GELU_PIECE = 2**16
# FBGEMM sums in one order at numbers of rows that this divides; at some others, in another.
HALF_ROWS = 3
CONVOLVED = 2**20  # entries from which on a convolution pays
ONE_BY_ONE = ((0, 0), (1, 1), (1, 1), 1)  # padding, stride, dilation, groups

_halved: ContextVar[list[PackedLinear] | None] = ContextVar("half_weights", default=None)


@contextlib.contextmanager
def half_weights(on: bool = True) -> Iterator[None]:
    """Within this context, layers are packed with their weights rounded to float16; arithmetic stays float32.

    Weights beyond float16's range (65,504) become its largest number. See `can_halve` for where it works.

    Raises:
        RearkitError: at its end, no layer was packed so.
    """
    halved: list[PackedLinear] = []
    token = _halved.set(halved if on else None)
    try:
        yield
    finally:
        _halved.reset(token)
    if on and not halved:
        raise RearkitError(
            '[sample] precision: "fp16-weights" does nothing here, since the backbone decodes without '
            "rearkit.PackedLinear, or not in float32; leave it out"
        )


class PackedLinear:
    """An `nn.Linear`, maybe with an exact GELU behind it, with its weight packed as it is now; a part for backbones.

    Elsewhere than on a CPU, and where oneDNN cannot take the weight's type, it is the plain layer.

    Args:
        linear: the layer; what is done to it later does not show here on a CPU.
        rows: how many it will be given. Other numbers work, but the layout depends on it, and would be changed at each
            call.
        gelu: whether a GELU follows.
    """

    def __init__(self, linear: nn.Linear, rows: int, gelu: bool = False) -> None:
        self.weight, self.gelu = linear.weight.detach(), gelu
        self.bias: Tensor | None = None if linear.bias is None else linear.bias.detach()
        self.packed = can_pack(self.weight)
        self.convolved = self.weight.numel() >= CONVOLVED
        self.halved: Any = None
        halved = _halved.get()
        if halved is not None and self.packed and can_halve():
            halved.append(self)
            self.halved = torch.ops.quantized.linear_prepack_fp16(self.weight.float(), self.bias)
            del self.weight
        elif self.packed and not self.convolved:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        elif self.packed:
            outputs, inputs = self.weight.shape
            kernel = self.weight.contiguous().as_strided((outputs, inputs, 1, 1), (inputs, 1, inputs, inputs))
            pixels = (1, inputs, 1, rows)
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(kernel, *ONE_BY_ONE, pixels)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, inputs) to (rows, outputs)."""
        if not self.packed:
            out = F.linear(x, self.weight, self.bias)
            return F.gelu(out) if self.gelu else out
        if self.halved is not None:
            padded = F.pad(x, (0, 0, 0, -len(x) % HALF_ROWS))
            return self._finished(torch.ops.quantized.linear_dynamic_fp16(padded, self.halved)[: len(x)])
        if not self.convolved:
            several = x if len(x) > 1 else x.expand(2, -1)  # oneDNN sums a single row in another order
            out = torch.ops.mkldnn._linear_pointwise(several, self.weight, self.bias, "none", [], "")
            return self._finished(out[: len(x)])
        rows, inputs = x.shape
        picture = x.contiguous().as_strided((1, inputs, 1, rows), (rows * inputs, 1, rows * inputs, inputs))
        out = torch.ops.mkldnn._convolution_pointwise.default(
            picture, self.weight, self.bias, *ONE_BY_ONE, "none", [], ""
        )
        return self._finished(out.as_strided((rows, out.shape[1]), (out.shape[1], 1)))

    def _finished(self, out: Tensor) -> Tensor:
        if self.gelu:  # not by oneDNN, which computes it a fifth as fast as torch does
            for piece in out.view(-1).split(GELU_PIECE) if out.numel() > GELU_PIECE else [out]:
                torch.ops.aten.gelu_.default(piece)
        return out


def can_halve() -> bool:
    """Tell whether this torch has FBGEMM, whose kernels take float16 weights; it is for x86 processors with AVX2."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch.ops.quantized, "linear_dynamic_fp16"
    )


def can_pack(weight: Tensor) -> bool:
    """Tell whether oneDNN packs such a weight: float32 on a CPU, and bfloat16 where the CPU computes with it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_convolution_pointwise")):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
