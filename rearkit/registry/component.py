"""Components by kind and name. The registry knows what a component is, but not which components exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from rearkit.errors import PluginError, did_you_mean
from rearkit.registry.setting_types import check_settings_class

if TYPE_CHECKING:
    from rearkit.contracts import PublishedLayout

KINDS: tuple[str, ...] = ("dataset", "tokenizer", "backbone", "noise", "regularizer")
"""What a recipe can name. `rearkit.contracts` says what each kind must do and how it is built."""

RESERVED: dict[str, tuple[str, ...]] = {
    "dataset": ("name",),
    "tokenizer": ("name", "weights", "weights_key", "fit"),
    "backbone": ("name", "weights", "weights_key", "weights_fit"),
    "noise": ("name",),
    "regularizer": ("name",),
}
"""Keys of each kind's table that are its own (see `rearkit.recipe.tables`), so that no setting can have these names."""


def _unknown_kind(kind: object) -> str:
    return f"unknown kind of component {kind!r}{did_you_mean(str(kind), KINDS)}; kinds: {', '.join(KINDS)}"


def _known_kind(component: Component, field: attrs.Attribute[str], kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(_unknown_kind(kind))


def _plain_name(component: Component, field: attrs.Attribute[str], name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{component.kind} {name!r}: a name is lower-case words and numbers joined by hyphens")


def _attrs_class(component: Component, field: attrs.Attribute[type], settings: type) -> None:
    if not (isinstance(settings, type) and attrs.has(settings)):
        raise TypeError(f"{component.kind} {component.name!r}: its settings are not a class made by rearkit.settings")
    try:
        check_settings_class(settings, RESERVED[component.kind])
    except TypeError as error:
        raise TypeError(f"{component.kind} {component.name!r}: {error}") from None


def _can_be_called(component: Component, field: attrs.Attribute[Any], build: object) -> None:
    if not callable(build):
        raise TypeError(
            f"{component.kind} {component.name!r}: its build must be a class or a function; found {build!r}"
        )


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
        module: the module whose hook returned it; set on registration.
    """

    kind: str = attrs.field(validator=_known_kind)
    name: str = attrs.field(validator=_plain_name)
    settings: type = attrs.field(validator=_attrs_class)
    build: Callable[..., Any] = attrs.field(validator=_can_be_called)
    published: PublishedLayout | None = None
    provider: str = ""
    module: str = ""

    @property
    def summary(self) -> str:
        """The first line of the settings class's docstring."""
        return (self.settings.__doc__ or "").strip().partition("\n")[0]


class Registry:
    """Components by kind and name. A name that two packages provide stops only those who ask for it."""

    def __init__(self) -> None:
        self._components: dict[tuple[str, str], list[Component]] = {}

    def add(self, component: Component, provider: str, module: str = "") -> None:
        """Register a component that a distribution provides, by the hook of a module."""
        registered = attrs.evolve(component, provider=provider, module=module)
        self._components.setdefault((component.kind, component.name), []).append(registered)

    def get(self, kind: str, name: str) -> Component:
        """Return a component.

        Raises:
            PluginError: no component has this name; the message suggests the nearest and lists all. Or several have it.
                Or there is no such kind.
        """
        if kind not in KINDS:
            raise PluginError(_unknown_kind(kind))
        found = self._components.get((kind, name), [])
        if not found:
            names = self.names(kind)
            raise PluginError(f"unknown {kind} {name!r}{did_you_mean(name, names)}; installed: {', '.join(names)}")
        # Refused rather than the first taken: the result of a recipe must not depend on the order of packages.
        if len(found) > 1:
            providers = " and ".join(component.provider for component in found)
            raise PluginError(f"{kind} {name!r} is provided by both {providers}; uninstall one of them")
        return found[0]

    def rivals(self, component: Component) -> list[str]:
        """Return the providers of other components of the same kind and name."""
        found = self._components.get((component.kind, component.name), [])
        return [other.provider for other in found if other is not component]

    def names(self, kind: str) -> list[str]:
        """Return all names of a kind, sorted."""
        return sorted(name for (k, name) in self._components if k == kind)

    def all(self) -> list[Component]:
        """Return all components, by kind in the order of `KINDS`, then by name, then by provider."""
        found = [component for several in self._components.values() for component in several]
        return sorted(found, key=lambda c: (KINDS.index(c.kind), c.name, c.provider))
