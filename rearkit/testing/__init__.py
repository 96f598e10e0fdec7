"""Contract checks, to be called in a component's own tests. They work with any test framework or with none.

::

    from rearkit.testing import check_noise_schedule

    def test_contract():
        check_noise_schedule(MySchedule())

A check raises `AssertionError` with a sentence that says which clause of `rearkit.contracts` is broken.
`check_component` checks what a `rearkit.Component` builds, at small sizes; the other checks take the component, or a
function that builds it, and further sizes. All of them leave torch's global random state unchanged.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch

from rearkit.context_noise import takes_context
from rearkit.contracts import NoiseContext, TokenSpace
from rearkit.errors import RecipeError
from rearkit.recipe.checking import as_table, structure
from rearkit.registry.component import Component
from rearkit.testing.backbones import check_backbone
from rearkit.testing.clauses import SPACE, require, seeded
from rearkit.testing.datasets import check_dataset
from rearkit.testing.grids import check_oblong
from rearkit.testing.noise import check_noise_schedule
from rearkit.testing.published import check_published
from rearkit.testing.regularizers import check_regularizer
from rearkit.testing.tokenizers import check_tokenizer

__all__ = [
    "check_backbone",
    "check_component",
    "check_dataset",
    "check_noise_schedule",
    "check_published",
    "check_regularizer",
    "check_settings",
    "check_tokenizer",
]


def check_component(component: Component, settings: Any = None, space: TokenSpace = SPACE) -> None:
    """Check a component's settings class, and what it builds from ``settings``, against the contract of its kind.

    Args:
        component: the component, as the package's hook returns it.
        settings: an instance of its settings class, with small sizes; by default, the class's defaults.
        space: small sizes, of what a backbone predicts and noise replaces; another than the default for a component
            that needs a square grid, say.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    settings = _defaults(component) if settings is None else settings
    require(
        type(settings) is component.settings,
        f"{component.kind} {component.name!r} is built from {component.settings.__name__}; "
        f"found {type(settings).__name__}",
    )
    check_settings(settings)
    with seeded():
        if component.kind == "dataset":
            check_dataset(component.build(settings))
        elif component.kind == "tokenizer":
            check_tokenizer(component.build(settings), lambda: component.build(settings))
            check_oblong(component, settings)
        elif component.kind == "backbone":
            check_backbone(lambda space: component.build(settings, space), space)
        elif component.kind == "noise":
            context = NoiseContext(space, torch.randn(space.codebook_size, 5))
            wanted = (context,) if takes_context(component.build) else ()
            check_noise_schedule(component.build(settings, *wanted), space=space)
        else:
            check_regularizer(lambda context: component.build(settings, context))


def check_settings(settings: Any) -> None:
    """Check that settings are frozen, documented for ``rearkit plugins``, and what a recipe can give.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    cls = type(settings)
    require(attrs.has(cls), f"settings must be a class made by rearkit.settings; {cls.__name__} is not an attrs class")
    require(
        (cls.__doc__ or "").strip(),
        f"a settings class must have a docstring, which people see; {cls.__name__} has none",
    )
    for field in attrs.fields(cls):
        require(field.metadata.get("doc"), f"every setting must say what it means: setting('…'); {field.name} does not")
        # Tried out, since a subclass or a __setattr__ of its own can undo what the decorator says.
        try:
            setattr(settings, field.name, getattr(settings, field.name))
        except attrs.exceptions.FrozenInstanceError:
            continue
        raise AssertionError(f"settings must be frozen, as rearkit.settings makes them; {cls.__name__} is not")
    _structured(as_table(settings), cls)


def _defaults(component: Component) -> Any:
    """Return a component's settings at their defaults, each checked as a recipe's value is."""
    fields = attrs.fields(component.settings)
    required = [field.name for field in fields if field.default is attrs.NOTHING]
    require(
        not required,
        f"{component.kind} {component.name!r} has no default of {', '.join(required)}: give settings as the second "
        "argument",
    )
    table: dict[str, Any] = {}
    for field in fields:
        # What a factory makes is checked with the settings as a whole; None stands for what a recipe leaves out.
        if field.default is not None and not isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
            table[field.name] = as_table(field.default) if attrs.has(type(field.default)) else field.default
    return _structured(table, component.settings)


def _structured(table: dict[str, Any], cls: type) -> Any:
    try:
        return structure(table, cls, cls.__name__, {})
    except RecipeError as error:
        raise AssertionError(f"settings, defaults too, must be values that a recipe can give: {error}") from error
