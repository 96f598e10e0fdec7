"""Layers for training that are quick on a CPU and keep little for the backward pass.

Three findings of ``benchmarks/train_step.py`` are behind them. torch multiplies float32 matrices on a CPU by MKL, which
on AMD's processors with AVX-512 leaves much of the arithmetic unused; oneDNN, which comes with torch too, does not.
Of what autograd keeps of a block, half is cheap to compute again from what is kept anyway: norms, modulations,
activations, dropped entries. Gradients are the same to rounding. And torch draws what a dropout keeps one number an
entry, which takes longer than all else that is not a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rearkit.packed import can_pack

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
        grad_weight = product(rows.t(), x.detach().reshape(-1, x.shape[-1]).t())
        return None, grad_weight, rows.sum(0), *grads


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN where it computes in this type on this device and is quicker, else by MKL."""
    if not (can_pack(weight) and WIDE_VECTORS):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Apply dropout, keeping a byte an entry for the backward pass, where `F.dropout` keeps a float on a CPU."""
    return dropped(x, drop_mask(x, rate), rate) if rate and training else x


def drop_mask(like: Tensor, rate: float) -> Tensor:
    """Draw which entries a dropout keeps, in the shape of ``like``, bool.

    On a CPU a random integer of 64 bits serves four entries, so that the rate is rounded to a multiple of 1/65,536.
    """
    kept = torch.empty_like(like, dtype=torch.bool, memory_format=torch.contiguous_format)
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return kept.bernoulli_(1 - rate)
    drawn = torch.empty(-(-kept.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    least = round(rate * 2**16) - 2**15
    torch.ge(drawn.view(torch.int16)[: kept.numel()].view(kept.shape), least, out=kept)
    return kept


def dropped(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Apply a dropout that `drop_mask` drew."""
    return torch.where(kept, x, 0).mul_(1 / (1 - rate))  # x * kept would first make floats of the mask


def causal_attention(q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    """Causal attention, (B, H, T, D/H) to the same, with dropout of its weights.

    torch's fused kernel for CPUs knows no dropout, so that torch would compute all T × T weights, and keep them four
    times. Here they are computed for `ROWS` queries at a time, as far as those look back, and again in the backward
    pass; a byte is kept of each.
    """
    if not rate or q.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
    parts, v = [], v.contiguous()  # once, and not at each product
    for start in range(0, q.shape[2], ROWS):
        end = min(start + ROWS, q.shape[2])
        kept = drop_mask(q.new_empty(1).expand(*q.shape[:2], end - start, end), rate)
        rows = (q[:, :, start:end], k[:, :, :end], v[:, :, :end])
        parts.append(checkpoint(_attend, *rows, kept, rate, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Attend from the last places of a sequence to all of it, causally."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    ahead = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    scores[..., -q.shape[2] :].masked_fill_(ahead, -torch.inf)
    return dropped(scores.softmax(-1), kept, rate) @ v
