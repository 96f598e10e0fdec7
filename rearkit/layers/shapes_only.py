"""Building modules on the meta device, where they have shapes and no content, and cost nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Within this context, modules are built without content; one that reads values of tensors raises an error."""
    with torch.device("meta"), _Unfilled():
        yield


def cheaply(build: Callable[[], T]) -> T:
    """Build a module without content; as it is if it reads values (TypeError: into NumPy)."""
    try:
        with shapes_only():
            return build()
    except (RuntimeError, NotImplementedError, TypeError):
        return build()


class _Unfilled(TorchFunctionMode):
    """Within this context, functions that change no shape do nothing: on meta, torch imports a compiler for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # `torch.nn.init` names its argument.
        if func in (nn.init.normal_, Tensor.normal_, F.normalize):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
