"""The clause on devices: what a component computes with is where its parameters are.

On a machine without a GPU, the meta device takes its place: it is not the CPU, and every machine has it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rearkit.contracts import (
    Backbone,
    FittableTokenizer,
    Regularizer,
    RegularizerContext,
    Tokenizer,
    TokenSpace,
    TrainingStep,
)
from rearkit.objective import regularizer_terms
from rearkit.testing.clauses import require, seeded

# Operators that may read tensors of two devices: copies, and what writes or reads at indices, which may be on the CPU.
COPIES = ("aten::copy_", "aten::_to_copy", "aten::set_")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
# Parts of torch's messages where it refuses before an operator is reached.
REFUSALS = ("same device", "device type tensor to numpy")
REMEDY = "register the tensor as a buffer, or make it with device= of what is handed in"


class _Mixed(Exception):
    """An operation that a GPU would refuse."""


class _OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of both the CPU and another device, as a GPU's would; meta's own refuse few."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        read = _tensors((args, kwargs))
        if name in INDEXED and args[0].device.type != "cpu":
            read = _tensors((args[:1], args[2:]))
        # Without dimensions, a tensor counts as a number, which may be on the CPU.
        devices = {tensor.device.type for tensor in read if tensor.dim()}
        if len(devices) > 1 and name not in COPIES:
            raise _Mixed(f"{name.removeprefix('aten::')} reads tensors of both")
        return func(*args, **kwargs)


def check_tokenizer_placed(tokenizer: Tokenizer, images: Tensor, tokens_BN: Tensor) -> None:
    """Check a tokenizer, which is moved to meta for it: encode, decode, codebook and the loss of its fit."""
    tokenizer.to("meta").eval()
    images, tokens_BN = images.to("meta"), tokens_BN.to("meta")
    with torch.no_grad():
        _check({"encode": lambda: tokenizer.encode(images), "decode": lambda: tokenizer.decode(tokens_BN)})
        _check({"codebook": tokenizer.codebook})
    if isinstance(tokenizer, FittableTokenizer):
        tokenizer.train().requires_grad_()
        _check({"fit_loss": lambda: tokenizer.fit_loss(images)})


def check_backbone_placed(build: Callable[[TokenSpace], Backbone], space: TokenSpace) -> None:
    """Check a backbone's forward; `start` and `step` have a clause of their own."""
    with seeded():
        backbone = build(space).to("meta")
    tokens_BN = torch.zeros(2, space.num_tokens, dtype=torch.int64, device="meta")
    classes_B = torch.zeros(2, dtype=torch.int64, device="meta")
    _check({"forward": lambda: backbone(tokens_BN, classes_B, tuple(range(backbone.num_layers)))})


def check_regularizer_placed(
    build: Callable[[RegularizerContext], Regularizer], context: RegularizerContext, step: TrainingStep
) -> None:
    """Check a regularizer's forward at a step, in training mode."""
    backbone = copy.deepcopy(context.backbone)
    assert backbone is not None
    with seeded():
        regularizer = build(attrs.evolve(context, codebook_VZ=context.codebook_VZ.detach(), backbone=backbone))
    # Only now, as in a run: a regularizer may keep the backbone, which moves with it.
    regularizer.to("meta")
    backbone.to("meta")
    given = {field: _moved(value) for field, value in vars(step).items()}
    _check({"forward": lambda: regularizer_terms(regularizer, TrainingStep(**given | {"backbone": backbone}))})


def _moved(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(item) for key, item in value.items()}
    return value.to("meta") if isinstance(value, Tensor) else value


def _check(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Require calls to read and return tensors of the meta device alone; what meta cannot do is no fault."""
    for name, call in calls.items():
        try:
            with _OneDevice():
                found = call()
        except _Mixed as error:
            raise AssertionError(
                f"{name} must compute on the device of the parameters; moved to another than the CPU, {error}: {REMEDY}"
            ) from error
        except Exception as error:
            of_devices = any(words in str(error) for words in REFUSALS)
            require(not of_devices, f"{name} must compute on the device of the parameters: {error}")
            continue
        strays = [tensor for tensor in _tensors(found) if tensor.dim() and tensor.device.type == "cpu"]
        require(not strays, f"{name} must return tensors on the device of the parameters, not on the CPU: {REMEDY}")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
