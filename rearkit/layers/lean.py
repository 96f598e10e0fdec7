"""Layers for training that are fast on a CPU and keep little memory for the backward pass.

They compute the same as torch's layers, and the same gradients to rounding. Times are in ``benchmarks/train_step.py``.

- Matrix products use oneDNN where it is faster than MKL, torch's default: on AMD's CPUs with AVX-512, by a tenth.
- Half of what autograd keeps of a block is cheap to compute again from what is kept anyway: norms, modulations,
  activations, dropped entries. `LeanLinear` computes it again in the backward pass.
- torch draws a random number for each entry of a dropout, which takes longer than all but the matrix products.
  `drop_mask` draws 16 bits an entry with numpy.
- autograd sums the gradients of a tensor's slices at the full length of that tensor; `causal_attention` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rearkit.layers import private_operators as private
from rearkit.layers.hashed_dropout import MOST, hashed_dropout
from rearkit.layers.packed_linear import can_pack

Prepare = Callable[..., Tensor]
# With AVX-512, oneDNN is faster than MKL on AMD's CPUs and equally fast on Intel's; without it, oneDNN is slower.
WIDE_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX512"
# Queries whose attention weights are in memory at the same time.
ROWS = 64


class LeanLinear(nn.Linear):
    """An `nn.Linear` that applies a cheap function to its input and does not keep the function's result."""

    def forward(self, *inputs: Tensor, prepare: Prepare | None = None) -> Tensor:
        """Apply the layer to ``prepare(*inputs)``, or to the only input if there is no ``prepare``.

        Args:
            inputs: tensors that are kept for the backward pass; those of floating point get gradients.
            prepare: a function of the inputs alone, without randomness, since the backward pass calls it again.
        """
        if is_lean():
            out: Tensor = _LeanLinear.apply(prepare, self.weight, self.bias, *inputs)
            return out
        # Without gradients nothing is kept anyway, and the compiler decides by itself what to compute again.
        return super().forward(inputs[0] if prepare is None else prepare(*inputs))


def is_lean() -> bool:
    """Return whether to save memory here: not without autograd, nor where torch.compile saves it itself.

    Nor under autocast, whose casts the backward pass would have to repeat.
    """
    plain = not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"))
    return plain and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _LeanLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prepare: Prepare | None, weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        ctx.prepare = prepare
        ctx.save_for_backward(weight, *inputs)
        return product(inputs[0] if prepare is None else prepare(*inputs), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        # The gradient with respect to what `prepare` returned.
        grad_prepared = product(grad, weight.t())
        rows = grad.reshape(-1, grad.shape[-1])
        grads: list[Tensor | None] = [grad_prepared]
        if ctx.prepare is None:
            x = inputs[0]
        else:
            # Detached, so that the graph built here ends at the inputs. Integers and bools have no gradients.
            again = [value.detach().requires_grad_(value.is_floating_point()) for value in inputs]
            with torch.enable_grad():
                x = ctx.prepare(*again)
            wanted = [value for value in again if value.requires_grad]
            found = iter(torch.autograd.grad(x, wanted, grad_prepared))
            grads = [next(found) if value.requires_grad else None for value in again]
        # In the order of forward's arguments: prepare, weight, bias, inputs. Some are frozen, and there may be no bias.
        _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        grad_weight = None
        if wants_weight:
            x = x.detach().reshape(-1, x.shape[-1])
            # MKL multiplies transposed matrices as they are. oneDNN copies the first one, which pays only if it is
            # small.
            grad_weight = product(rows.t(), x.t()) if rows.shape[1] < x.shape[1] else rows.t() @ x
        return None, grad_weight, rows.sum(0) if wants_bias else None, *grads


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias``, with oneDNN where it supports the dtype and is faster, else with MKL."""
    if not (can_pack(weight) and WIDE_VECTORS):
        return F.linear(x, weight, bias)
    # F.linear calls MKL for float32, and no public function chooses oneDNN.
    return private.linear(x, weight, bias)


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Apply dropout, keeping one byte an entry for the backward pass; `F.dropout` keeps a float on a CPU."""
    if not (rate and training):
        return x
    if x.device.type == "cuda" and torch.compiler.is_compiling() and x.numel() < MOST:
        return hashed_dropout(x, rate)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        # On CUDA F.dropout is one kernel and keeps bools; the compiler fuses it with its neighbours.
        return F.dropout(x, rate)
    return dropped(x, drop_mask(x, rate), rate)


def drop_mask(like: Tensor, rate: float) -> Tensor:
    """Draw which entries a dropout keeps: bool, in the shape of ``like``.

    On a CPU the rate is rounded to a multiple of 1/65,536.
    """
    kept = torch.empty_like(like, dtype=torch.bool, memory_format=torch.contiguous_format)
    if like.device.type != "cpu":
        return kept.bernoulli_(1 - rate)
    # The numbers are uniform over [-2^15, 2^15): a share `rate` of them is below this threshold, and is dropped.
    return torch.ge(_random_shorts(kept), round(rate * 2**16) - 2**15, out=kept)


# An operator of its own, so that it has a version for meta tensors: numpy cannot fill those.
@torch.library.custom_op("rearkit::random_shorts", mutates_args=())
def _random_shorts(like: Tensor) -> Tensor:
    """Draw uniform int16 numbers in the shape of ``like``."""
    # The seed comes from torch, so that torch.manual_seed and saved random states govern these numbers too.
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    count = like.numel()
    # numpy draws 64 bits at a time, which serve four entries, and takes half of torch's time.
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)
    return torch.from_numpy(drawn)[:count].view(like.shape)


@_random_shorts.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=torch.int16)


def dropped(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Apply the dropout that `drop_mask` drew; only the bools are kept for the backward pass."""
    # As integers, since torch multiplies by bools ten times more slowly.
    return (x * kept.view(torch.int8)).mul_(1 / (1 - rate))


def factors(kept: Tensor, rate: float, dtype: torch.dtype) -> Tensor:
    """Return what a dropout multiplies each entry by, 0 or 1/(1 - rate), where that need not be kept."""
    return kept.view(torch.int8).to(dtype).mul_(1 / (1 - rate))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
    """Causal attention with dropout of the attention weights; q, k, v and the result are (B, H, T, D/H).

    On a CPU, weights are computed for `ROWS` queries at a time, only for the keys that those may see, and again in the
    backward pass. One byte is kept of each weight, the dropout's.
    """
    if not rate or q.device.type != "cpu" or torch.compiler.is_compiling():
        # torch's fused CPU kernel has no dropout: with it, torch would compute all T × T weights and keep them four
        # times.
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
    out: Tensor = _DroppedAttention.apply(*(part.flatten(0, 1) for part in (q, k, v)), rate)
    return out.unflatten(0, q.shape[:2])


class _DroppedAttention(torch.autograd.Function):
    """Causal attention with dropout over (G, T, d), G = B·H."""

    @staticmethod
    # Where autocast is on, this casts the inputs to float32 and switches autocast off inside.
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rate: float) -> Tensor:
        out = torch.empty_like(v)
        masks = []
        for start, end in _pieces(q.shape[1]):
            weights = _causal_weights(q[:, start:end], k[:, :end])
            masks.append(drop_mask(weights, rate))
            # In place: the backward pass computes the weights again, so only the mask is kept.
            out[:, start:end] = weights.mul_(factors(masks[-1], rate, weights.dtype)) @ v[:, :end]
        ctx.rate = rate
        ctx.save_for_backward(q, k, v, *masks)
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *masks = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        grad_k = torch.zeros_like(k)
        grad_v = torch.zeros_like(v)
        for (start, end), kept in zip(_pieces(q.shape[1]), masks, strict=True):
            rows = q[:, start:end]
            grad_rows = grad[:, start:end]
            weights = _causal_weights(rows, k[:, :end])
            factor = factors(kept, ctx.rate, q.dtype)
            # Keys and values are read by all later pieces, so their gradients add up; those of queries do not.
            grad_v[:, :end] += (weights * factor).mT @ grad_rows
            grad_weights = (grad_rows @ v[:, :end].mT).mul_(factor)
            grad_scores = private.softmax_backward(grad_weights, weights)
            # The scale of the queries in `_causal_weights`, applied once for both products below.
            grad_scores *= q.shape[-1] ** -0.5
            grad_q[:, start:end] = grad_scores @ k[:, :end]
            grad_k[:, :end] += grad_scores.mT @ rows
        return grad_q, grad_k, grad_v, None


def _pieces(places: int) -> list[tuple[int, int]]:
    """Split positions into ranges of `ROWS`; the last one is up to half shorter or longer."""
    # A short rest goes to the piece before it, since a product of a few rows is slow. At least one piece.
    starts = range(0, max(places - ROWS // 2, 1), ROWS)
    return list(zip(starts, [*starts[1:], places], strict=True))


def _causal_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return the attention weights of the last positions of a sequence, (G, rows, T)."""
    rows = q.shape[1]
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.mT)
    # All keys before the first of these queries may be seen; only the last square needs a mask.
    scores[:, :, -rows:].masked_fill_(torch.ones(rows, rows, dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1)
