"""Building one component by its name, without a recipe, with a recipe's checks of its settings."""

from __future__ import annotations

import inspect
from typing import Any

import attrs

from rearkit.contracts import NoiseContext, RegularizerContext, TokenSpace
from rearkit.errors import PluginError
from rearkit.recipe.checking import as_table, structure
from rearkit.registry import plugins
from rearkit.registry.contract import build_checked

CONTEXTS: dict[str, type] = {"backbone": TokenSpace, "noise": NoiseContext, "regularizer": RegularizerContext}
"""What components are built from besides their settings; noise schedules may do without."""


def make(kind: str, name: str, *context: object, **settings: object) -> Any:
    """Build one component by name, without a recipe.

    Args:
        kind: one of `rearkit.registry.component.KINDS`.
        name: the component's name in recipes.
        context: the further arguments of the kind's ``build``; see `rearkit.contracts`.
        settings: the component's settings, as in a recipe.

    Raises:
        PluginError: there is no such kind or component, its context is missing or another, or it breaks its contract.
        RecipeError: all errors in the settings.
        ValueError: the settings do not fit the context.
    """
    component = plugins.find(kind, name)
    # A recipe has tables where settings are nested.
    given = {key: as_table(value) if attrs.has(type(value)) else value for key, value in settings.items()}
    checked: Any = structure(given, component.settings, f"{kind} {name!r}", {})
    wanted = [CONTEXTS[kind]] if kind in CONTEXTS and len(inspect.signature(component.build).parameters) > 1 else []
    if len(context) != len(wanted) or not all(map(isinstance, context, wanted)):
        needed = f"a {wanted[0].__name__} of rearkit.contracts after its name" if wanted else "its settings alone"
        found = ", ".join(type(each).__name__ for each in context) or "nothing"
        raise PluginError(f"{kind} {name!r}: needs {needed}; found {found}")
    return build_checked(component, checked, *context)
