"""Memory of a computation, counted on tensors without content."""

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
    """Counts the bytes of all tensors made within this context while they live, gradients of parameters apart.

    It sees each operator's results when they are made and when nothing holds them any more, so that it counts what
    autograd keeps, in whatever way (saved tensors, checkpoints, functions of one's own), and what lives but briefly.

    Args:
        parameters: tensors that become gradients of these are counted apart.

    Attributes:
        live: bytes alive now, without gradients.
        peak: the most of them at any time.
        peak_with_gradients: the most of them and gradients together.
    """

    def __init__(self, parameters: Iterable[nn.Parameter] = ()) -> None:
        super().__init__()
        self.live = self.peak = self.gradients = self.peak_with_gradients = 0
        self._kinds: dict[int, str] = {}
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._known = {parameter.untyped_storage()._cdata for parameter in self._parameters}

    def __enter__(self) -> LiveBytes:
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
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in inputs:  # else a view, or in place
                self._made(leaf.untyped_storage())
        return out

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._kinds or key in self._known or not size:
            return
        self._kinds[key] = "live"
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
    """Within this context, operators work that torch has only for tensors with content: packing a matrix for oneDNN,
    `torch.unique`, which finds all values different and in order, and `torch.equal`, which finds none unequal."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._unique2.default:
            return args[0].clone(), torch.zeros_like(args[0]), args[0].new_empty(0)
        if func is torch.ops.aten.equal.default:
            return True
        if func.namespace == "mkldnn" and func._opname in ("_reorder_convolution_weight", "_reorder_linear_weight"):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Within this context, attention keeps what the fused kernels of an accelerator keep: its inputs, its output, and
    a float a query; torch would take a tensor without content for one that needs the whole matrix of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args[:3], strict=False)) | kwargs
        return _FusedAttention.apply(named["query"], named["key"], named["value"])


class _FusedAttention(torch.autograd.Function):
    """Shapes and arithmetic only: two products forward, five backward (FlashAttention, algorithms 1 and 4)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
