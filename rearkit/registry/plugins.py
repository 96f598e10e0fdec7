"""Discovery of plugins: each installed distribution with an entry point in the group ``rearkit`` adds its components.

A plugin is skipped, and the reason kept, if its import fails, its hook fails or its components are refused. A broken
third-party package must not keep anybody from training with another one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
from collections.abc import Iterable, Iterator

import attrs
import pluggy
from packaging.utils import canonicalize_name

from rearkit.errors import PluginError, RearkitError
from rearkit.registry import hookspecs
from rearkit.registry.component import Component, Registry
from rearkit.registry.provenance import Blame, blame, code_of

ENTRY_POINT_GROUP = "rearkit"


@attrs.frozen
class BrokenPlugin:
    """A plugin that was skipped: its distribution, and the reason."""

    provider: str
    reason: str


@attrs.frozen
class Plugins:
    """The result of discovery."""

    registry: Registry
    broken: tuple[BrokenPlugin, ...]


@functools.cache
def load_plugins() -> Plugins:
    """Discover all plugins, once per process."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    broken: list[BrokenPlugin] = []
    modules: dict[str, str] = {}
    for provider, entry_point in _entry_points():
        plugin_name = f"{provider}:{entry_point.name}"
        modules[plugin_name] = entry_point.module
        try:
            plugin = entry_point.load()
            manager.register(plugin, name=plugin_name)
            # pluggy accepts a module without any hook, which is a mistake here: a decorator was forgotten.
            if manager.hook.rearkit_components not in (manager.get_hookcallers(plugin) or ()):
                raise TypeError(f"{entry_point.value} has no rearkit_components() marked with @rearkit.hookimpl")
        except KeyboardInterrupt:
            raise
        # An import can raise anything, SystemExit included.
        except BaseException as error:
            broken.append(BrokenPlugin(provider, _one_line(error)))
    registry = Registry()
    # Each implementation is called by itself: one call of the hook would stop at the first that fails.
    for implementation in manager.hook.rearkit_components.get_hookimpls():
        provider = implementation.plugin_name.rpartition(":")[0]
        try:
            components = _checked(implementation.function())
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            broken.append(BrokenPlugin(provider, _one_line(error)))
            continue
        # After all of them were checked, so that a plugin is used as a whole or not at all.
        for component in components:
            registry.add(component, provider, modules[implementation.plugin_name])
    # Now, since this is the code that was imported, whatever becomes of the files while the process goes on.
    for component in registry.all():
        with contextlib.suppress(OSError):
            code_of(component)
    return Plugins(registry, tuple(broken))


def registry() -> Registry:
    """Return the registry of this process."""
    return load_plugins().registry


def find(kind: str, name: str) -> Component:
    """Return a component.

    Raises:
        PluginError: no component has this name; the message also names the plugins that failed to load.
    """
    plugins = load_plugins()
    try:
        return plugins.registry.get(kind, name)
    except PluginError as error:
        broken = "".join(f"; note: {plugin.provider} failed to load ({plugin.reason})" for plugin in plugins.broken)
        raise PluginError(f"{error}{broken}") from None


def blamed(error: BaseException) -> Blame | None:
    """Return the plugin's component that an exception came out of, or None; for errors that were not expected."""
    # Without plugins loaded, none can have failed, and loading them now could raise another error.
    if isinstance(error, RearkitError) or not load_plugins.cache_info().currsize:
        return None
    components = load_plugins().registry.all()
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    return next((found for each in chain if (found := blame(each, components)) is not None), None)


@contextlib.contextmanager
def naming_plugins() -> Iterator[None]:
    """Add a note to an exception that comes out of a plugin's component: which component, of which package."""
    try:
        yield
    except Exception as error:
        if (found := blamed(error)) is not None:
            # As `add_note` does, which Python 3.10 has not.
            error.__notes__ = [*getattr(error, "__notes__", ()), f"raised in {found.owner}, {found.place}"]
        raise


def _checked(returned: object) -> list[Component]:
    """Return a hook's result as a list of components, after checking their types and that no name comes twice."""
    if not isinstance(returned, Iterable):
        raise TypeError(f"rearkit_components() returned {returned!r}, not a list of rearkit.Component")
    components: dict[tuple[str, str], Component] = {}
    for component in returned:
        if not isinstance(component, Component):
            raise TypeError(f"rearkit_components() returned {component!r}, not a rearkit.Component")
        if (component.kind, component.name) in components:
            raise ValueError(f"rearkit_components() returned {component.kind} {component.name!r} twice")
        components[component.kind, component.name] = component
    return list(components.values())


def _entry_points() -> Iterator[tuple[str, importlib.metadata.EntryPoint]]:
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        # A checkout's egg-info can be found as well as the installed distribution; the first one on the path counts.
        if not name or canonicalize_name(name) in seen:
            continue
        seen.add(canonicalize_name(name))
        for entry_point in distribution.entry_points:
            if entry_point.group == ENTRY_POINT_GROUP:
                yield f"{name} {distribution.version}", entry_point


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")
