"""What of a component's contract can be looked at as soon as it is built, hours before the rest of it is called."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rearkit.contracts.methods import OPTIONAL, PREDICTIONS, Regularizer
from rearkit.contracts.modules import Backbone, FittableTokenizer, Tokenizer

MODULES: Mapping[str, type[nn.Module]] = {"tokenizer": Tokenizer, "backbone": Backbone, "regularizer": Regularizer}
"""The kinds of components that are modules, and the classes from which they inherit."""
METHODS = {
    "tokenizer": ("encode", "decode", "codebook"),
    "backbone": ("forward", "start", "step"),
    "noise": ("rates",),
    "regularizer": ("forward",),
}
COUNTS = {"tokenizer": ("num_tokens", "codebook_size"), "backbone": ("prefix_length", "hidden_size", "num_layers")}
READS = {"noise": (PREDICTIONS,), "regularizer": OPTIONAL}


def breach(kind: str, built: object) -> str | None:
    """Return what a component breaks of its kind's contract, in words; None if nothing is seen without calling it.

    Args:
        kind: of the component.
        built: the component; modules may be on the meta device.
    """
    for method in METHODS.get(kind, ()):
        if _lacks(kind, built, method):
            return f"has no method {method} of its own"
    if isinstance(built, FittableTokenizer) and _lacks_fit(built):
        return "has neither fit_pass nor fit_loss; write one of them, or inherit from Tokenizer"
    for attribute in COUNTS.get(kind, ()):
        value = getattr(built, attribute, None)
        if not _is_count(value, 1):
            return f"{attribute} must be a whole number from 1; found {value!r}"
    if kind == "tokenizer":
        size = getattr(built, "image_size", None)
        sides = size if isinstance(size, tuple | list) and len(size) == 2 else (size,)
        if not all(_is_count(side, 1) for side in sides):
            return f"image_size must be a number of pixels, or height and width; found {size!r}"
    if kind in ("backbone", "noise"):
        extra = getattr(built, "extra_tokens", 0)
        if not _is_count(extra, 0):
            return f"extra_tokens must be a whole number from 0; found {extra!r}"
    if kind in READS:
        reads, known = getattr(built, "reads", ()), READS[kind]
        if isinstance(reads, str) or not isinstance(reads, Collection) or any(field not in known for field in reads):
            return f"reads must be a tuple of fields among {', '.join(known)}; found {reads!r}"
    if isinstance(built, Regularizer):
        layers, weight = built.layers, built.weight
        if not isinstance(layers, Collection) or not all(isinstance(layer, Integral) for layer in layers):
            return f"layers must list the blocks that it reads, by their numbers; found {layers!r}"
        if not isinstance(weight, Tensor) and not (isinstance(weight, Real) and math.isfinite(weight)):
            return f"weight must be a finite number; found {weight!r}"
    return parameter_breach(built) if isinstance(built, Backbone | Regularizer) else None


def parameter_breach(module: nn.Module) -> str | None:
    """Return what is wrong with a module's parameters for DeepSpeed, in words; None if nothing is."""
    for name, parameter in module.named_parameters():
        if is_lazy(parameter):
            return f"parameter {name} gets its shape in a first call only; give it one when it is built"
        if parameter.dim() == 0:
            return f"parameter {name} must have at least one dimension: write torch.ones(1), not torch.tensor(1.0)"
        if parameter.numel() == 0:
            return f"parameter {name} must not be empty; its shape is {tuple(parameter.shape)}"
    return None


def _is_count(value: object, least: int) -> bool:
    # NumPy's, too, which sizes are often computed by.
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _lacks(kind: str, built: object, method: str) -> bool:
    """Return whether a method is missing, or the contract's own, which is only declared."""
    found = getattr(built, method, None)
    declared = getattr(MODULES.get(kind), method, None)
    return not callable(found) or (declared is not None and getattr(found, "__func__", found) is declared)


def _lacks_fit(tokenizer: FittableTokenizer) -> bool:
    kind = type(tokenizer)
    return (
        kind.fit_pass is FittableTokenizer.fit_pass
        and kind.fit_loss is FittableTokenizer.fit_loss
        and not vars(tokenizer).keys() & {"fit_pass", "fit_loss"}
    )
