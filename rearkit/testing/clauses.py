"""What the contract checks share: one way to fail, seeding, and the clauses that hold for all modules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rearkit.contracts import TokenSpace
from rearkit.contracts.breaches import parameter_breach

# Wide enough for float32 sums in another order, far below the effect of a mistake.
TOLERANCE = 1e-4
# Three different numbers, so that a mix-up of dimensions cannot go unnoticed.
SPACE = TokenSpace(num_tokens=6, codebook_size=11, num_classes=3)


def require(holds: object, clause: str) -> None:
    """Raise AssertionError with the broken clause; not with ``assert``, which ``python -O`` removes."""
    if not holds:
        raise AssertionError(clause)


def require_tensor(value: object, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
    """Require a tensor of this shape and dtype, and return it."""
    is_tensor = isinstance(value, Tensor)
    found = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    require(
        is_tensor and tuple(value.shape) == shape and value.dtype == dtype,  # type: ignore[attr-defined]
        f"{what} must be a tensor, {dtype} of shape {shape}; found {found}",
    )
    assert isinstance(value, Tensor)
    return value


def require_module(component: object, what: str) -> nn.Module:
    """Require an `nn.Module`, and return it."""
    require(isinstance(component, nn.Module), f"a {what} must be an nn.Module; found {type(component).__name__}")
    assert isinstance(component, nn.Module)
    return component


def require_count(component: object, attribute: str, what: str) -> None:
    """Require an attribute to be an int of at least 1."""
    value = getattr(component, attribute, None)
    require(
        isinstance(value, int) and not isinstance(value, bool) and value >= 1,
        f"{what}.{attribute} must be a whole number from 1; found {value!r}",
    )


def require_parameters(module: nn.Module, what: str) -> None:
    """Require parameters that DeepSpeed trains: each with a shape, of one dimension or more, and not empty."""
    broken = parameter_breach(module)
    require(broken is None, f"a {what} that can be trained: {broken}")


def require_gradients(module: nn.Module, what: str) -> None:
    """Require every trainable parameter to have a finite gradient."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        require(
            parameter.grad is not None,
            f"every parameter of a {what} must get a gradient; {name} gets none, so it takes no part in the loss",
        )
        assert parameter.grad is not None
        require(
            parameter.grad.isfinite().all(), f"every parameter of a {what} must get a finite gradient; {name} does not"
        )


def copy_state(first: nn.Module, second: nn.Module, what: str) -> None:
    """Load one instance's state dict into another, as a run does with saved weights."""
    # Cloned, so that the second instance cannot share memory with the first and agree for that reason.
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in first.state_dict().items()}
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    require(not odd, f"the state dict of a {what} must hold tensors only; {', '.join(odd)} is none")
    try:
        second.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise AssertionError(
            f"a second {what} of the same settings must take the first's state dict: {reason}"
        ) from error


@torch.no_grad()
def stir(module: nn.Module) -> None:
    """Add noise to every parameter, as DeepSpeed's steps change them: unseen by autograd's version counters.

    A fresh module often has its gates or heads at zero, and would pass any check of what it computes.
    """
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.numel():
            # Noise of half the usual initial deviation, so that activations stay of order 1. 25 makes it 0.1 for
            # vectors.
            width = parameter[0].numel() if parameter.dim() > 1 else 25
            parameter.data.add_(torch.randn_like(parameter) * 0.5 * width**-0.5)


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Run a block with a seed of its own, and leave torch's global random state unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def largest(difference: Tensor) -> float:
    """Return the largest absolute value, or 0 if the tensor is empty."""
    return float(difference.detach().abs().max()) if difference.numel() else 0.0


def close(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors agree to `TOLERANCE`, absolute below 1 and relative above."""
    return torch.allclose(first.float(), second.float(), rtol=TOLERANCE, atol=TOLERANCE)


def named(component: Any) -> str:
    """Return the name of a component's class, for messages."""
    return type(component).__name__
