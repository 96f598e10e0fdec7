"""The private operators of torch that layers use for speed, each tried once, on a small case, before its first use.

A later torch may rename them, change what they take or drop them, and a CPU may lack their kernels. They count as there
only if they give what public functions give; if not, layers use the public ones. No other module calls them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

mkldnn: Any = torch.ops.mkldnn
quantized: Any = torch.ops.quantized
# Padding, stride, dilation, groups of a 1×1 convolution.
ONE_BY_ONE = ((0, 0), (1, 1), (1, 1), 1)


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """Bring a weight into oneDNN's layout, for inputs of so many rows."""
    packed: Tensor = mkldnn._reorder_linear_weight(weight, rows)
    return packed


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` by oneDNN, with a packed weight or one as it is."""
    out: Tensor = mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def pack_convolution(kernel: Tensor, pixels: tuple[int, int, int, int]) -> Tensor:
    """Bring a kernel of (outputs, inputs, 1, 1) into oneDNN's layout, for pictures of this shape."""
    packed: Tensor = mkldnn._reorder_convolution_weight(kernel, *ONE_BY_ONE, pixels)
    return packed


def convolution(picture: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """`F.conv2d` by oneDNN, with a packed kernel of 1×1."""
    out: Tensor = mkldnn._convolution_pointwise.default(picture, kernel, bias, *ONE_BY_ONE, "none", [], "")
    return out


def pack_half(weight: Tensor, bias: Tensor | None) -> Any:
    """Round a weight to float16, in FBGEMM's layout."""
    return quantized.linear_prepack_fp16(weight.float(), bias)


def half_linear(x: Tensor, packed: Any) -> Tensor:
    """`F.linear` by FBGEMM, with a weight in float16 and float32 arithmetic."""
    out: Tensor = quantized.linear_dynamic_fp16(x, packed)
    return out


def softmax_backward(grad: Tensor, out: Tensor) -> Tensor:
    """Return the gradient of a softmax over the last dimension, from that of its output."""
    if has_softmax_backward():
        # What softmax's own backward calls: one pass instead of several.
        return torch._softmax_backward_data(grad, out, -1, out.dtype)
    return (grad - (grad * out).sum(-1, keepdim=True)).mul_(out)


@functools.cache
def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether oneDNN's linear layers and 1×1 convolutions can be used with a dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        # Without the CPU's own instructions, oneDNN's bfloat16 is slow.
        return has_onednn() and _works(lambda: bool(mkldnn._is_mkldnn_bf16_supported()) and _onednn_agrees(dtype))
    return dtype == torch.float32 and _works(lambda: _onednn_agrees(dtype))


@functools.cache
def has_fbgemm() -> bool:
    """Return whether this torch has FBGEMM's kernels for float16 weights (x86 CPUs with AVX2)."""
    return "fbgemm" in torch.backends.quantized.supported_engines and _works(_fbgemm_agrees)


@functools.cache
def has_softmax_backward() -> bool:
    """Return whether softmax's backward can be called by itself."""
    return _works(_softmax_backward_agrees)


def _works(try_it: Callable[[], bool]) -> bool:
    # In a thread of its own, where no mode of the caller is on: no autocast, meta device or fake tensors.
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(try_it).result()
        except (AttributeError, RuntimeError, TypeError):
            return False


@torch.no_grad()
def _onednn_agrees(dtype: torch.dtype) -> bool:
    x, weight, bias = _case(dtype)
    expected = F.linear(x, weight, bias)
    kernel, picture = weight.as_strided((3, 5, 1, 1), (5, 1, 5, 5)), x.as_strided((1, 5, 1, 4), (20, 1, 20, 5))
    convolved = convolution(picture, pack_convolution(kernel, (1, 5, 1, 4)), bias)
    found = (linear(x, weight, bias), linear(x, pack_linear(weight, 4), bias), convolved.permute(0, 2, 3, 1).view(4, 3))
    return all(_near(one, expected) for one in found)


@torch.no_grad()
def _fbgemm_agrees() -> bool:
    x, weight, bias = _case(torch.float32)
    return _near(half_linear(x, pack_half(weight, bias)), F.linear(x, weight.half().float(), bias))


def _softmax_backward_agrees() -> bool:
    x, grad = (part[0].requires_grad_() for part in _case(torch.float32)[:2])
    out = x.softmax(-1)
    (expected,) = torch.autograd.grad(out, x, grad.detach())
    with torch.no_grad():
        return _near(torch._softmax_backward_data(grad, out, -1, out.dtype), expected)


def _case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Four rows of 5 inputs, a weight and a bias for 3 outputs; not random, so that no generator moves on."""
    values = torch.arange(38, dtype=torch.float32, device="cpu").sin()
    x, weight, bias = (part.to(dtype) for part in values.split((20, 15, 3)))
    return x.view(4, 5), weight.view(3, 5), bias


def _near(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-5 if expected.dtype == torch.float32 else 0.05
    return found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), tolerance, tolerance)
