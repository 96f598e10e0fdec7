"""Components by kind and name. The registry knows what a component is, but not which components exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from rearkit.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from rearkit.contracts import PublishedLayout

KINDS: tuple[str, ...] = ("dataset", "tokenizer", "backbone", "noise", "regularizer")
"""What a recipe can name. `rearkit.contracts` says what each kind must do and how it is built."""


def _known_kind(component: Component, field: attrs.Attribute[str], kind: str) -> None:
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise ValueError(f"unknown kind of component {kind!r}{hint}; kinds: {', '.join(KINDS)}")


def _plain_name(component: Component, field: attrs.Attribute[str], name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{component.kind} {name!r}: a name is lower-case words and numbers joined by hyphens")


def _attrs_class(component: Component, field: attrs.Attribute[type], settings: type) -> None:
    if not (isinstance(settings, type) and attrs.has(settings)):
        raise TypeError(f"{component.kind} {component.name!r}: its settings are not a class made by rearkit.settings")


@attrs.frozen
class Component:
    """One component that a recipe can name.

    Attributes:
        kind: one of `KINDS`.
        name: the name in a recipe: lower-case words joined by hyphens.
        settings: a class made by `rearkit.recipe.settings.settings`; the recipe's table becomes an instance of it.
        build: makes the component from its settings (see `rearkit.contracts` for the other arguments of each kind).
        published: the layout in which others published its weights, if they did.
        provider: the distribution that registered it, with its version; set on registration.
    """

    kind: str = attrs.field(validator=_known_kind)
    name: str = attrs.field(validator=_plain_name)
    settings: type = attrs.field(validator=_attrs_class)
    build: Callable[..., Any]
    published: PublishedLayout | None = None
    provider: str = ""

    @property
    def summary(self) -> str:
        """The first line of the settings class's docstring."""
        return (self.settings.__doc__ or "").strip().partition("\n")[0]


class Registry:
    """Components by kind and name. Two components of the same kind and name are an error that names both providers."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], Component] = {}

    def add(self, component: Component, provider: str) -> None:
        """Register a component.

        Raises:
            PluginError: the name is taken.
        """
        key = (component.kind, component.name)
        # Refused rather than replaced: the result of a recipe must not depend on the order of packages.
        if key in self._components:
            first = self._components[key].provider
            raise PluginError(
                f"{component.kind} '{component.name}' is provided by both {first} and {provider}; uninstall one of them"
            )
        self._components[key] = attrs.evolve(component, provider=provider)

    def get(self, kind: str, name: str) -> Component:
        """Return a component.

        Raises:
            PluginError: no component has this name; the message suggests the nearest and lists all.
        """
        try:
            return self._components[kind, name]
        except KeyError:
            names = self.names(kind)
            raise PluginError(
                f"unknown {kind} {name!r}{did_you_mean(name, names)}; installed: {', '.join(names)}"
            ) from None

    def names(self, kind: str) -> list[str]:
        """Return all names of a kind, sorted."""
        return sorted(name for (k, name) in self._components if k == kind)

    def all(self) -> list[Component]:
        """Return all components, by kind in the order of `KINDS`, then by name."""
        return sorted(self._components.values(), key=lambda c: (KINDS.index(c.kind), c.name))
