"""Whose code it is: the source files of a plugin, a digest of them, and the component that an exception came out of."""

from __future__ import annotations

import functools
import hashlib
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType

import attrs

from rearkit.registry.component import Component

OURS = "rearkit"
"""The distribution whose components are built in."""
BUILT_IN = "rearkit 0.1.0"
"""What stands for any version of rearkit in the keys of stages: the first version wrote this."""
SOURCES = (".py", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".json", ".toml", ".yaml", ".yml")


def is_built_in(provider: str) -> bool:
    """Return whether a distribution, named with its version, is rearkit itself."""
    return provider.partition(" ")[0] == OURS


def code_of(component: Component) -> str:
    """Return a plugin's distribution and version with a digest of its source files, which shows edited code.

    Built-in components have a constant instead: a new version of rearkit must leave finished runs as they are.
    """
    if is_built_in(component.provider):
        return BUILT_IN
    return f"{component.provider} {_digest(tuple(packages(component)))}"


def packages(component: Component) -> list[str]:
    """Return the packages, or modules outside of any, that a component's code is in; the outermost only."""
    modules = {component.module, component.settings.__module__}
    builder = getattr(component.build, "__module__", None) or ""
    # What builds it may be another library's class, which is not the plugin's code.
    if builder.partition(".")[0] in {module.partition(".")[0] for module in modules}:
        modules.add(builder)
    found = {_package(module) for module in modules if module and not _within(module, OURS)}
    return sorted(name for name in found if not any(_within(name, other) for other in found - {name}))


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _package(module: str) -> str:
    """Return a module's package: itself if it is one, or if it is in none."""
    if hasattr(sys.modules.get(module), "__path__"):
        return module
    return module.rpartition(".")[0] or module


# Once per process, since a process goes on with the code that it has imported, whatever becomes of the files.
@functools.cache
def _digest(names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name in names:
        for place, path in sorted(_files(name)):
            digest.update(f"{name} {place} ".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _files(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the source files of a package or module, by their paths within it."""
    module = sys.modules.get(name)
    if (folders := getattr(module, "__path__", None)) is not None:
        for folder in map(Path, folders):
            for path in folder.rglob("*"):
                if path.suffix in SOURCES and path.is_file():
                    yield path.relative_to(folder).as_posix(), path
    elif (file := getattr(module, "__file__", None)) is not None and Path(file).is_file():
        yield Path(file).name, Path(file)


@attrs.frozen
class Blame:
    """Where an exception entered a plugin.

    Attributes:
        owner: the component and its provider, in words.
        place: file and line.
    """

    owner: str
    place: str


def blame(error: BaseException, components: Iterable[Component]) -> Blame | None:
    """Return the component that an exception came out of: the first one that was called on the way to it.

    Returns:
        None if no plugin's code was on the way.
    """
    theirs = [(component, packages(component)) for component in components if not is_built_in(component.provider)]
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        owners = [component for component, names in theirs if any(_within(module, name) for name in names)]
        if owners:
            place = f"{frame.f_code.co_filename}, line {line}"
            return Blame(_in_words(_narrowed(owners, frame, module)), place)
    return None


def owner(built: object, components: Iterable[Component]) -> str | None:
    """Return whose code a component's class is, in words as a `Blame` has them; None if it is no plugin's."""
    # Not above, since it imports torch, which conversions do without.
    from rearkit.contracts import MODULES

    classes = type(built).__mro__
    theirs = [(component, packages(component)) for component in components if not is_built_in(component.provider)]
    for cls in classes:
        found = [component for component, names in theirs if any(_within(cls.__module__, name) for name in names)]
        if found:
            alike = [c for c in found if isinstance(built, MODULES[c.kind] if c.kind in MODULES else _classes(c))]
            # The nearest of classes that inherit from one another.
            exact = next((own for each in classes if (own := [c for c in alike if each in _classes(c)])), [])
            return _in_words(exact or alike or found)
    return None


def _narrowed(owners: list[Component], frame: FrameType, module: str) -> list[Component]:
    """Return those of a package's components that a call is of, if that can be told."""
    values = tuple(frame.f_locals.values())
    by_value = [c for c in owners if any(isinstance(value, _classes(c)) for value in values)]
    by_module = [c for c in owners if module in (c.settings.__module__, getattr(c.build, "__module__", ""))]
    return by_value or by_module or owners


def _classes(component: Component) -> tuple[type, ...]:
    return (component.settings, *((component.build,) if isinstance(component.build, type) else ()))


def _in_words(owners: list[Component]) -> str:
    one = owners[0]
    return f"{one.kind} {one.name!r} of {one.provider}" if len(owners) == 1 else one.provider
