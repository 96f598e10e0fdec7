"""What of a recipe's tables counts in the key of a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from rearkit.recipe.tables import ComponentTable
from rearkit.registry.provenance import BUILT_IN, is_built_in
from rearkit.registry.setting_types import plain


def result_relevant(value: Any, floors: bool = True) -> Any:
    """Return settings as plain values, without those that cannot change a result, and with floors or without."""
    # Settings marked "cosmetic", such as how often to log, may change without making a finished stage run again.
    if attrs.has(type(value)):
        left_out = ("cosmetic",) if floors else ("cosmetic", "floor")
        fields = [field for field in attrs.fields(type(value)) if not any(map(field.metadata.get, left_out))]
        return {
            field.name: result_relevant(_as_formerly(getattr(value, field.name), field), floors)
            for field in fields
            # A setting that came later, at its default: results from before it are the same.
            if not field.metadata.get("since") or getattr(value, field.name) != field.default
        } | _provider(value)
    if isinstance(value, Mapping):
        return {key: result_relevant(item, floors) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [result_relevant(item, floors) for item in value]
    return plain(value)


def _as_formerly(value: Any, field: attrs.Attribute[Any]) -> Any:
    """Return a setting's value, or the default of earlier versions if it has today's; that one, if given, apart."""
    former = field.metadata.get("formerly", attrs.NOTHING)
    return {field.default: former, former: [former]}.get(value, value) if former is not attrs.NOTHING else value


def _provider(value: Any) -> dict[str, str]:
    """Return, of a component's table, what its provider is in a key: the same for every version of rearkit."""
    return {"provider": BUILT_IN} if isinstance(value, ComponentTable) and is_built_in(value.provider) else {}
