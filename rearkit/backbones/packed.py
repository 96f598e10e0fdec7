"""Linear layers for decoding, where a matrix meets a handful of rows at a time.

On a CPU, torch multiplies by MKL, whose kernels for 2 to 64 rows are poor: at 2 rows it read a matrix of (3072, 768) at
4 GB/s where memory gives 30, and at 64 rows it made half of the arithmetic that the machine can do. oneDNN, which comes
with torch too, is near both floors once it has packed the matrix in its own layout. Its kernels also sum in an order
that does not depend on the number of rows, nor on the number of threads, which MKL's do not promise: a row gives the
same bits in any batch. ``benchmarks/sampling.py`` measures the speed, the tests the bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear:
    """An `nn.Linear`, maybe with an exact GELU behind it, with its weight packed as it is now; a part for backbones.

    Elsewhere than on a CPU, and where oneDNN cannot take the weight's type, it is the plain layer.

    Args:
        linear: the layer; what is done to it later does not show here on a CPU.
        gelu: whether a GELU follows.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        self.weight, self.gelu = linear.weight.detach(), gelu
        self.bias: Tensor | None = None if linear.bias is None else linear.bias.detach()
        self.packed = can_pack(self.weight)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, inputs) to (rows, outputs)."""
        if not self.packed:
            out = F.linear(x, self.weight, self.bias)
            return F.gelu(out) if self.gelu else out
        if len(x) == 1:  # the one number of rows that has a kernel of its own, which sums in another order
            return self(x.repeat(2, 1))[:1]
        kind, algorithm = ("gelu", "none") if self.gelu else ("none", "")
        packed_out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], algorithm)
        return packed_out


def can_pack(weight: Tensor) -> bool:
    """Tell whether oneDNN packs such a weight: float32 on a CPU, and bfloat16 where the CPU computes with it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
