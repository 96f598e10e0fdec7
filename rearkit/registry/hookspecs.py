"""The one hook that a package implements to add components to rearkit."""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from rearkit.registry.component import Component

PROJECT = "rearkit"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def rearkit_components() -> Iterable[Component]:  # type: ignore[empty-body]
    """Return the components that this package provides.

    A package names the module that implements this hook under the entry-point group ``rearkit``; recipes can then use
    its components. The hook is called once, when a component is first looked up.
    """
