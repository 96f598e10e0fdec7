"""Counting the memory of a computation that runs on meta tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made within this context, from creation until they are freed.

    It sees the results of each operator, so it counts temporary tensors and all that autograd keeps: saved tensors,
    checkpoints, custom autograd functions. Gradients of parameters are counted separately.

    Args:
        parameters: whose gradients are counted separately.

    Attributes:
        live: bytes alive now, without gradients.
        peak: highest value of ``live``.
        peak_with_gradients: highest sum of ``live`` and gradients.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        self.live = self.peak = self.gradients = self.peak_with_gradients = 0
        self._kinds: dict[int, str] = {}
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        # Storages, not tensors: views of a parameter share its storage and take no memory of their own.
        self._known = {parameter.untyped_storage()._cdata for parameter in self._parameters}

    def __enter__(self) -> LiveBytes:
        # A gradient is an ordinary tensor until autograd assigns it, so only these hooks can recognise one.
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._is_gradient) for parameter in self._parameters
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # A result in an input's storage is a view or was computed in place: no new memory.
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in inputs:
                self._made(leaf.untyped_storage())
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        size = storage.nbytes()
        if key in self._kinds or key in self._known or not size:
            return
        self._kinds[key] = "live"
        # Called when the last tensor of this storage is gone, whoever held it.
        weakref.finalize(storage, self._freed, key, size)
        self.live += size
        self._look()

    def _freed(self, key: int, size: int) -> None:
        if self._kinds.pop(key) == "live":
            self.live -= size
        else:
            self.gradients -= size

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if self._kinds.get(storage._cdata) == "live":
            self._kinds[storage._cdata] = "gradient"
            self.live -= storage.nbytes()
            self.gradients += storage.nbytes()

    def _look(self) -> None:
        self.peak = max(self.peak, self.live)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + self.gradients)


class StandIns(TorchDispatchMode):
    """Within this context, some operators that torch can't run on meta tensors return results of a plausible shape.

    These are oneDNN's packing of a matrix; `torch.unique`, which finds all values distinct and sorted; and
    `torch.equal`, which finds all values equal.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # All distinct is the worst case: backbones that compute once for each class then compute for each row.
        if func is torch.ops.aten._unique2.default:
            return args[0].clone(), torch.zeros_like(args[0]), args[0].new_empty(0)
        if func is torch.ops.aten.equal.default:
            return True
        if func.namespace == "mkldnn" and func._opname in ("_reorder_convolution_weight", "_reorder_linear_weight"):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Within this context, attention keeps what an accelerator's fused kernels keep: inputs, output, a float a query.

    On meta tensors torch itself would fall back to plain attention, which keeps the whole T × T matrix.
    """

    def __enter__(self) -> FusedAttention:
        # In the backward pass, where a checkpoint is computed again, torch switches such modes off; so the function is
        # replaced besides. By itself that would miss who imports it by its name.
        self._torchs = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = _fused_attention
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        F.scaled_dot_product_attention = self._torchs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_fused_attention if func is self._torchs else func)(*args, **(kwargs or {}))


def _fused_attention(*args: Any, **kwargs: Any) -> Tensor:
    # Masks, dropout and scale are ignored: they do not change what the fused kernels keep.
    named = dict(zip(("query", "key", "value"), args[:3], strict=False)) | kwargs
    out: Tensor = _FusedAttention.apply(named["query"], named["key"], named["value"])
    return out


class _FusedAttention(torch.autograd.Function):
    """Attention by shapes alone, which computes nothing (kept tensors as in FlashAttention, algorithms 1 and 4)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
        # One float32 a query, from which the backward pass recomputes the attention weights.
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
