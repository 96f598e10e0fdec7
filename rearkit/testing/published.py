"""The contract of a component's published layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from rearkit.contracts import EXTRA, PublishedLayout, TokenSpace
from rearkit.registry.component import Component
from rearkit.testing.clauses import require, require_module, seeded

State = Mapping[str, Tensor]


def check_published(component: Component, state: State, settings: Any, space: TokenSpace | None = None) -> None:
    """Check a component's `PublishedLayout` on weights as others published them: real ones, or small ones made so.

    Args:
        component: the component, as the package's hook returns it.
        state: a state dict in the published layout.
        settings: an instance of the component's settings class, with the sizes of ``state``.
        space: the sizes that a backbone is built for.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    layout = component.published
    require(layout is not None, f"{component.kind} {component.name!r} has no published layout: Component(published=…)")
    assert layout is not None
    require((space is not None) == (component.kind == "backbone"), "a backbone, and only that, needs a token space")
    require(layout.recognises(state) is True, "recognises must return True for weights in the published layout")
    _check_foreign(layout, state)
    ours = layout.to_rearkit(state)
    _check_there_and_back(layout, state, ours)
    own = {name: value for name, value in ours.items() if not name.startswith(EXTRA)}
    _check_fit(component, own, settings, space, "the settings given")
    sizes = layout.sizes(own)
    if space is not None:
        numbers = {
            "codebook of": space.codebook_size, "classes": space.num_classes, "tokens an image": space.num_tokens
        }  # fmt: skip
        wrong = {name: sizes[name] for name in numbers.keys() & sizes.keys() if sizes[name] != numbers[name]}
        require(not wrong, f"sizes must tell the numbers that the weights are for, {numbers}; found {wrong}")
    # More than settings may be told.
    known = {field.name for field in attrs.fields(component.settings)}
    told = {name: tuple(v) if isinstance(v, list) else v for name, v in sizes.items() if name in known}
    require(told, f"sizes must tell settings by their names; found {list(sizes)}")
    _check_fit(component, own, attrs.evolve(settings, **told), space, f"the settings that sizes reads, {told},")


def _check_foreign(layout: PublishedLayout, state: State) -> None:
    """Show a layout weights that are not its own: every file that is converted is shown to every layout."""
    for what, foreign, may_be_its_own in _foreign(state):
        try:
            found = layout.recognises(foreign)
        # Any exception, which is what the clause is about.
        except Exception as error:
            raise AssertionError(
                f"recognises must answer whatever it is shown; {what}, it raises {type(error).__name__}: {error}"
            ) from error
        require(isinstance(found, bool), f"recognises must return True or False; {what}, it returns {found!r}")
        require(may_be_its_own or not found, f"recognises must return False {what}")
        try:
            layout.to_published(foreign)
        except Exception as error:
            raise AssertionError(
                f"to_published must leave alone what it does not know; {what}, it raises "
                f"{type(error).__name__}: {error}"
            ) from error


def _foreign(state: State) -> Iterator[tuple[str, dict[str, Tensor], bool]]:
    """Yield what is foreign about a state dict, the state dict, and whether a layout may take it for its own."""
    yield "of no weights at all", {}, False
    yield "of one tensor of another name", {"weight": torch.zeros(2, 2)}, False
    yield "of the same tensors under other names", {f"foreign.{name}": value for name, value in state.items()}, False
    # A layout that goes by names cannot tell these, but then it must not look at shapes either.
    yield "of scalars under its names", {name: torch.zeros(()) for name in state}, True
    yield "of empty tensors under its names", {name: torch.zeros(0) for name in state}, True
    yield "of tensors with a dimension more", {name: value[None] for name, value in state.items()}, True
    for name in state:
        yield f"of all its tensors but {name}", {other: v for other, v in state.items() if other != name}, True
        yield f"of a scalar {name}", {**state, name: torch.zeros(())}, True


def _check_there_and_back(layout: PublishedLayout, state: State, ours: State) -> None:
    back = layout.to_published(ours)
    differing = sorted(state.keys() ^ back.keys()) or [
        name for name in state if state[name].shape != back[name].shape or not torch.equal(state[name], back[name])
    ]
    require(
        not differing,
        f"to_published must undo to_rearkit; {len(differing)} tensors differ, such as {', '.join(differing[:3])}",
    )


def _check_fit(component: Component, own: State, settings: Any, space: TokenSpace | None, which: str) -> None:
    with seeded():
        module = require_module(component.build(settings, *(() if space is None else (space,))), component.kind)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in own.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    require(
        not wrong,
        f"to_rearkit must give the names and shapes of the {component.kind} that {which} make; "
        + ", ".join(f"{name} is {found.get(name, 'missing')}, not {expected.get(name, 'there')}" for name in wrong[:3]),
    )
