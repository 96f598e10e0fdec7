"""The reAR training objective, usable with any autoregressive module that exposes its hidden states.

``loss = cross-entropy(next clean token | noisy context) + Σ weight · regularizer(hidden states, clean tokens)``

(paper, section "Method"). Its parts work with other training loops and transformers too: call `corrupt` before the
forward pass, `capture` around it, `Objective` after it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.context_noise import NoisyContext, NoNoise, corrupt, predictions
from rearkit.contracts import Regularizer, TrainingStep
from rearkit.contracts.methods import LOGGED_ONLY, OPTIONAL
from rearkit.registry.contract import blaming, broken

__all__ = ["Loss", "NoNoise", "NoisyContext", "Objective", "capture", "corrupt"]


# Without slots, since DeepSpeed's ZeRO stage 3 looks for tensors in a module's output with vars().
@attrs.frozen(eq=False, slots=False)
class Loss:
    """A training loss and its parts.

    Attributes:
        total: scalar, to call ``backward`` on.
        parts: detached scalars for the log: ``cross_entropy``, ``accuracy`` and each ``regularizer/NAME/TERM``.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """Cross-entropy plus regularizers. It owns the regularizers' heads: pass its parameters to the optimizer too.

    Args:
        regularizers: by the name under which each is logged; an empty mapping gives the plain AR loss.
    """

    def __init__(self, regularizers: Mapping[str, Regularizer]) -> None:
        super().__init__()
        for name, regularizer in regularizers.items():
            if not isinstance(regularizer, nn.Module):
                raise TypeError(f"regularizer {name!r} is not an nn.Module")
            unknown = [field for field in fields_read(regularizer) if field not in OPTIONAL]
            if unknown:
                raise ValueError(f"regularizer {name!r} reads {unknown[0]!r}; it can read: {', '.join(OPTIONAL)}")
        self.regularizers = nn.ModuleDict(dict(regularizers))

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose outputs the regularizers read, sorted."""
        wanted: set[int] = set()
        for regularizer in self.regularizers.values():
            wanted.update(regularizer.layers)  # type: ignore[arg-type]
        return tuple(sorted(wanted))

    @property
    def reads(self) -> frozenset[str]:
        """The fields in `rearkit.contracts.methods.OPTIONAL` that some regularizer reads."""
        return frozenset(field for regularizer in self.regularizers.values() for field in fields_read(regularizer))

    def forward(
        self, logits: Tensor, hidden: Mapping[int, Tensor], tokens_BN: Tensor, replaced_BN: Tensor, prefix_length: int
    ) -> Loss:
        """Compute the loss in a training loop of one's own.

        Args:
            logits: (B, N or N+1, V); position i predicts token i, and a last position without a target is ignored.
            hidden: outputs of the blocks `layers`, (B, P + N, D) each.
            tokens_BN: (B, N) int64, the clean tokens.
            replaced_BN: (B, N) bool, from `corrupt`.
            prefix_length: P, number of positions before token 0's own position, at least 1.

        Raises:
            PluginError: a regularizer's terms are not what its contract says.
            ValueError: shapes do not fit each other.
        """
        return self.loss(
            TrainingStep(
                tokens_BN=tokens_BN,
                replaced_BN=replaced_BN,
                prefix_length=prefix_length,
                hidden=hidden,
                logits_BNV=predictions(logits, tokens_BN),
            )
        )

    def loss(self, step: TrainingStep) -> Loss:
        """Compute the loss of a step, whose logits must be given.

        Raises:
            PluginError: a regularizer's terms are not what its contract says.
            ValueError: shapes do not fit each other.
        """
        assert step.logits_BNV is not None
        with blaming(step.backbone):
            _check_shapes(step, self.layers)
            # In float32 even in bf16 training: a softmax over V codes loses too much in 8 bits of mantissa.
            total = cross_entropy = F.cross_entropy(step.logits_BNV.flatten(0, 1).float(), step.tokens_BN.flatten())
            accuracy = (step.logits_BNV.detach().argmax(-1) == step.tokens_BN).float().mean()
        parts = {"cross_entropy": cross_entropy.detach(), "accuracy": accuracy}
        for name, regularizer in self.regularizers.items():
            with blaming(regularizer):
                terms = regularizer_terms(regularizer, step)
                _check_terms(name, regularizer, terms)
            added = [value for term, value in terms.items() if not term.startswith(LOGGED_ONLY)]
            # A regularizer may only log.
            if added:
                total = total + float(regularizer.weight) * sum(added)  # type: ignore[arg-type]
            parts |= {
                f"regularizer/{name}/{term.removeprefix(LOGGED_ONLY)}": value.detach() for term, value in terms.items()
            }
        return Loss(total, parts)


def fields_read(regularizer: nn.Module) -> tuple[str, ...]:
    """Return the fields in `rearkit.contracts.methods.OPTIONAL` that a regularizer reads."""
    return tuple(getattr(regularizer, "reads", ()))


def regularizer_terms(regularizer: nn.Module, step: TrainingStep) -> Mapping[str, Tensor]:
    """Return a regularizer's terms, having hidden from it what it does not say that it reads."""
    terms: Mapping[str, Tensor]
    if _takes_step(type(regularizer).forward):
        unread: dict[str, Any] = {field: None for field in OPTIONAL if field not in fields_read(regularizer)}
        terms = regularizer(attrs.evolve(step, **unread))
    else:
        terms = regularizer(step.hidden, step.tokens_BN, step.replaced_BN, step.prefix_length)
    return terms


# Looked up once, since each micro-batch asks.
@functools.cache
def _takes_step(forward: Callable[..., Any]) -> bool:
    """Return whether a class's ``forward`` takes a `TrainingStep`; one written for rearkit 0.1 takes four tensors."""
    try:
        # The regularizer itself and a step.
        inspect.signature(forward).bind(None, None)
    except TypeError:
        return False
    return True


def _check_terms(name: str, regularizer: nn.Module, terms: Mapping[str, Tensor]) -> None:
    who = f"regularizer {name!r}"
    if not isinstance(terms, Mapping):
        raise broken(regularizer, who, f"terms must be a mapping; found {type(terms).__name__}")
    for term, value in terms.items():
        if not isinstance(term, str):
            raise broken(regularizer, who, f"terms must have names; found {term!r}")
        if not (isinstance(value, Tensor) and value.dim() == 0):
            found = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise broken(regularizer, who, f"term {term!r} must be a scalar tensor; found {found}")


def _check_shapes(step: TrainingStep, layers: Sequence[int]) -> None:
    B, N = step.tokens_BN.shape
    if step.prefix_length < 1:
        raise ValueError(f"prefix_length is {step.prefix_length}; the position that predicts token 0 comes before it")
    if step.replaced_BN.shape != (B, N):
        raise ValueError(f"replaced_BN has shape {tuple(step.replaced_BN.shape)}, the tokens {(B, N)}")
    length = step.prefix_length + N
    for layer in layers:
        if layer not in step.hidden:
            raise ValueError(f"hidden has no output of block {layer}; it has those of {sorted(step.hidden)}")
        shape = step.hidden[layer].shape
        if len(shape) != 3 or shape[0] != B or shape[1] != length:
            raise ValueError(
                f"the hidden states of block {layer} have shape {tuple(shape)}; expected ({B}, {length}, D): "
                f"prefix_length {step.prefix_length} and {N} tokens"
            )


@contextlib.contextmanager
def capture(blocks: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of modules during a forward pass, for a model that does not return its hidden states.

    ``with capture({0: model.layers[0], 9: model.layers[9]}) as hidden: logits = model(tokens)`` stores each module's
    output under its number (the first item of the output if it is a tuple). The model may be compiled, before or after.
    """
    hidden: dict[int, Tensor] = {}

    # A function of its own, since a closure made in a loop would see the last index only.
    def keeping(index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def kept(*arguments: Any, **keywords: Any) -> Any:
            output = forward(*arguments, **keywords)
            hidden[index] = output[0] if isinstance(output, tuple) else output
            return output

        return kept

    # Not hooks: a model that was compiled before does not notice those.
    before = {index: vars(block).get("forward") for index, block in blocks.items()}
    for index, block in blocks.items():
        block.forward = keeping(index, block.forward)
    try:
        yield hidden
    finally:
        # Also after an error, or the model would keep the functions, and with them the outputs.
        # In reverse, for a module that has two numbers.
        for index, block in reversed(list(blocks.items())):
            if before[index] is None:
                del block.forward
            else:
                block.forward = before[index]  # type: ignore[assignment]
