"""Layers for training that are quick on a CPU and keep little for the backward pass.

Findings of ``benchmarks/train_step.py`` are behind them. torch multiplies float32 matrices on a CPU by MKL, which on
AMD's processors with AVX-512 is a tenth slower than oneDNN, which comes with torch too. Of what autograd keeps of a
block, half is cheap to compute again from what is kept anyway: norms, modulations, activations, dropped entries.
Gradients are the same to rounding. torch draws what a dropout keeps one number an entry, which takes longer than all
else that is not a matrix product. And autograd adds up the gradients of a tensor's slices in full length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rearkit.layers.packed_linear import can_pack

Prepare = Callable[..., Tensor]
# With them, oneDNN is quicker than MKL on AMD's processors, and as quick on Intel's; without, slower.
WIDE_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX512"
ROWS = 64  # queries of which the attention weights are in memory at once


class LeanLinear(nn.Linear):
    """An `nn.Linear` behind a cheap function, whose result is not kept."""

    def forward(self, *inputs: Tensor, prepare: Prepare | None = None) -> Tensor:
        """Return the layer of ``prepare(*inputs)``; without it, of the one input.

        Args:
            inputs: what is kept for the backward pass; those of floating point get gradients.
            prepare: a function of them alone, without randomness: it is called again in the backward pass.
        """
        if is_lean():
            out: Tensor = _LeanLinear.apply(prepare, self.weight, self.bias, *inputs)
            return out
        return super().forward(inputs[0] if prepare is None else prepare(*inputs))


def is_lean() -> bool:
    """Tell whether there is something to keep less of, and nobody who does it already, as the compiler would."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _LeanLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepare: Prepare | None, weight: Tensor, bias: Tensor, *inputs: Tensor) -> Tensor:
        ctx.prepare = prepare
        ctx.save_for_backward(weight, *inputs)
        return product(inputs[0] if prepare is None else prepare(*inputs), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        grad_prepared = product(grad, weight.t())
        rows = grad.reshape(-1, grad.shape[-1])
        grads: list[Tensor | None] = [grad_prepared]
        if ctx.prepare is None:
            x = inputs[0]
        else:
            again = [value.detach().requires_grad_(value.is_floating_point()) for value in inputs]
            with torch.enable_grad():
                x = ctx.prepare(*again)
            wanted = [value for value in again if value.requires_grad]
            found = iter(torch.autograd.grad(x, wanted, grad_prepared))
            grads = [next(found) if value.requires_grad else None for value in again]
        x = x.detach().reshape(-1, x.shape[-1])
        # MKL takes transposed matrices as they are; oneDNN copies the first before, which pays where that is small.
        grad_weight = product(rows.t(), x.t()) if rows.shape[1] < x.shape[1] else rows.t() @ x
        return None, grad_weight, rows.sum(0), *grads


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN where it computes in this type on this device and is quicker, else by MKL."""
    if not (can_pack(weight) and WIDE_VECTORS):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Apply dropout, keeping a byte an entry for the backward pass, where `F.dropout` keeps a float on a CPU.

    On CUDA `F.dropout` is one kernel and keeps bools; the compiler fuses it.
    """
    if not (rate and training):
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return dropped(x, drop_mask(x, rate), rate)


def drop_mask(like: Tensor, rate: float) -> Tensor:
    """Draw which entries a dropout keeps, in the shape of ``like``, bool.

    On a CPU the rate is rounded to a multiple of 1/65,536.
    """
    kept = torch.empty_like(like, dtype=torch.bool, memory_format=torch.contiguous_format)
    if like.device.type != "cpu":
        return kept.bernoulli_(1 - rate)
    return torch.ge(_random_shorts(kept), round(rate * 2**16) - 2**15, out=kept)


@torch.library.custom_op("rearkit::random_shorts", mutates_args=())  # an operator, for tensors without content
def _random_shorts(like: Tensor) -> Tensor:
    """Draw int16, all values alike, in the shape of ``like``.

    An integer of 64 bits serves four entries; numpy draws it, in half of torch's time, from a seed that torch draws.
    """
    seed, count = int(torch.randint(2**63 - 1, (), device="cpu")), like.numel()
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)
    return torch.from_numpy(drawn)[:count].view(like.shape)


@_random_shorts.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=torch.int16)


def dropped(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Apply a dropout that `drop_mask` drew, keeping its bools for the backward pass."""
    return (x * kept.view(torch.int8)).mul_(1 / (1 - rate))  # integers, since torch is ten times as slow with bools


def factors(kept: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    """Return what a dropout multiplies by, for where it need not be kept."""
    return kept.view(torch.int8).to(dtype).mul_(1 / (1 - rate))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    """Causal attention, (B, H, T, D/H) to the same, with dropout of its weights.

    torch's fused kernel for CPUs knows no dropout, so that torch would compute all T × T weights, and keep them four
    times. Here they are computed for `ROWS` queries at a time, as far as those look back, and again in the backward
    pass; a byte is kept of each.
    """
    if not rate or q.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
    out: Tensor = _DroppedAttention.apply(*(part.flatten(0, 1) for part in (q, k, v)), rate)
    return out.unflatten(0, q.shape[:2])


class _DroppedAttention(torch.autograd.Function):
    """Of (G, T, d) each, G = B·H."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # where autocast is on
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
        out, masks = torch.empty_like(v), []
        for start, end in _pieces(q.shape[1]):
            weights = _causal_weights(q[:, start:end], k[:, :end])
            masks.append(drop_mask(weights, rate))
            out[:, start:end] = weights.mul_(factors(masks[-1], rate, weights.dtype)) @ v[:, :end]
        ctx.rate = rate
        ctx.save_for_backward(q, k, v, *masks)
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *masks = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), kept in zip(_pieces(q.shape[1]), masks, strict=True):
            rows, grad_rows = q[:, start:end], grad[:, start:end]
            weights, factor = _causal_weights(rows, k[:, :end]), factors(kept, ctx.rate, q.dtype)
            grad_v[:, :end] += (weights * factor).mT @ grad_rows
            grad_weights = (grad_rows @ v[:, :end].mT).mul_(factor)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grad_scores *= q.shape[-1] ** -0.5
            grad_q[:, start:end] = grad_scores @ k[:, :end]
            grad_k[:, :end] += grad_scores.mT @ rows
        return grad_q, grad_k, grad_v, None


def _pieces(places: int) -> list[tuple[int, int]]:
    """Split queries into `ROWS` each, the last ones a few more or less."""
    starts = range(0, max(places - ROWS // 2, 1), ROWS)
    return list(zip(starts, [*starts[1:], places], strict=True))


def _causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights of the last places of a sequence, (G, rows, T)."""
    rows = q.shape[1]
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.mT)
    scores[:, :, -rows:].masked_fill_(torch.ones(rows, rows, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1)
