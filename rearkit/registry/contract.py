"""Components that break their contract: they are named, with their package, where rearkit's code stumbles over it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from rearkit.contracts import MODULES
from rearkit.contracts.breaches import breach
from rearkit.errors import ContractError, first_line
from rearkit.registry import plugins
from rearkit.registry.component import Component
from rearkit.registry.provenance import owner
from rearkit.system import distributed

# What comes of a wrong signature, type, shape or name. Others are the machine's: memory, files, other ranks.
STUMBLES = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError)


def build_checked(component: Component, settings: object, *context: object) -> Any:
    """Build a component, and look at what is seen of its contract at once.

    Args:
        component: from the registry.
        settings: an instance of its class of settings.
        context: the further arguments of the kind's ``build``; see `rearkit.contracts`.

    Raises:
        ContractError: it breaks its contract.
    """
    who = f"{component.kind} {component.name!r} of {component.provider}"
    # Bound first: what `build` itself raises is told otherwise. Some functions of C have no signature.
    with contextlib.suppress(ValueError):
        signature = inspect.signature(component.build)
        try:
            signature.bind(settings, *context)
        except TypeError as error:
            given = ", ".join(["settings", *(type(value).__name__ for value in context)])
            raise ContractError(f"{who}: build gets ({given}), and takes {signature}: {error}") from error
    built = component.build(settings, *context)
    base = MODULES.get(component.kind)
    # A class that only looks alike fails later, with an error that does not name it.
    if base is not None and not isinstance(built, base):
        found = type(built)
        raise ContractError(
            f"{component.provider}: {found.__module__}.{found.__qualname__} is no {base.__name__} of "
            f"rearkit.contracts; write: class {found.__name__}({base.__name__})"
        )
    if (what := breach(component.kind, built)) is not None:
        raise ContractError(f"{who}: {what}")
    return built


@contextlib.contextmanager
def blaming(built: object) -> Iterator[None]:
    """Within this context, a component is called, and what it returns is used.

    An exception that comes of it is told as the component's, if that is a plugin's. One that comes out of the plugin's
    own code is left as it is, since `rearkit.registry.plugins.blamed` names it.

    Args:
        built: the component; anything else, None too, changes nothing.

    Raises:
        ContractError: in place of the exception, which is its cause.
    """
    try:
        yield
    except Exception as error:
        who = _named(built) if _may_be_of_a_component(error) else None
        if who is None:
            raise
        said = f"{type(error).__name__}: {first_line(error)}"
        raise ContractError(
            f"{who} failed with {said}; tell its authors, with the traceback that --debug shows"
        ) from error


def broken(built: object, otherwise: str, what: str) -> ContractError:
    """Return the error for a component that breaks its contract; ``otherwise`` names one that is in no registry."""
    return ContractError(f"{_named(built) or otherwise}: {what}")


def _named(built: object) -> str | None:
    # As for `blamed`: without plugins loaded, it is none's.
    if built is None or not plugins.load_plugins.cache_info().currsize:
        return None
    return owner(built, plugins.registry().all())


def _may_be_of_a_component(error: Exception) -> bool:
    # Plain RuntimeErrors are torch's about shapes and types, and gloo's about lost ranks.
    stumbled = isinstance(error, STUMBLES) or (type(error) is RuntimeError and not distributed.several())
    return stumbled and plugins.blamed(error) is None
