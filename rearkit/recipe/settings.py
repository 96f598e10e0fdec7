"""How a component or a stage declares its settings: a frozen attrs class whose fields are documented.

``rearkit plugins`` and ``rearkit show`` print this documentation, and the fields' validators write a recipe's error
messages, for built-in components and plugins alike.
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from attrs import validators

from rearkit.registry.setting_types import plain

if sys.version_info >= (3, 11):
    from typing import dataclass_transform
else:
    from typing_extensions import dataclass_transform

T = TypeVar("T", bound=type)
S = TypeVar("S")


def setting(
    doc: str,
    *,
    default: Any = attrs.NOTHING,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
    min_len: int | None = None,
    validator: Callable[..., Any] | None = None,
    cosmetic: bool = False,
    floor: bool = False,
    since: str | None = None,
    formerly: Any = attrs.NOTHING,
) -> Any:
    """Declare one setting.

    Args:
        doc: one line: meaning, unit, range.
        default: the value if the recipe gives none; without a default, the recipe must give one.
        ge: smallest allowed value. Bounds apply to each item of a list, and not to None or to words.
        gt: values must be greater than this.
        le: largest allowed value.
        lt: values must be less than this.
        choices: the allowed values.
        min_len: smallest allowed length of a list or string.
        validator: a further attrs validator.
        cosmetic: true if the value cannot change a stage's results (how often it logs, how work is divided), so that
            the stage does not run again when it changes.
        floor: true if the value only refuses results: a stage that it has stopped goes on under another.
        since: the version that the setting came with. At its default, it leaves what earlier versions made up to date,
            so the default must be what they did.
        formerly: the default of earlier versions, if it was another. What they made at theirs stays up to date at this
            one.
    """
    checks: list[Any] = []
    limits: list[str] = []  # the same in words, for the recipe reference
    if choices is not None:
        checks.append(_one_of(choices))
        limits.append("one of " + ", ".join(json.dumps(plain(choice)) for choice in choices))
    for symbol, bound in (("≥", ge), (">", gt), ("≤", le), ("<", lt)):
        if bound is not None:
            checks.append(_bound(symbol, bound))
            limits.append(f"{symbol} {bound}")
    if min_len is not None:
        checks.append(_at_least(min_len))
        limits.append(f"length ≥ {min_len}")
    if validator is not None:
        checks.append(validator)
    # All instances would share it, and settings are frozen.
    if isinstance(default, list | dict):
        raise TypeError("a default must be immutable: give a tuple, or a nested settings class")
    marks = {"cosmetic": cosmetic, "floor": floor, "since": since, "formerly": formerly}
    return attrs.field(
        default=default,
        # Optional, so that None passes: it stands for a setting that is left out.
        validator=validators.optional(validators.and_(*checks)) if checks else None,
        metadata={"doc": doc, **marks, "limits": tuple(limits)},
    )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def settings(cls: T) -> T:
    """Make a class a settings class: frozen, keyword-only, slotted."""
    return attrs.frozen(kw_only=True)(cls)


def with_changes(table: S, **changes: Any) -> S:
    """Return settings with other values of some fields, which are checked as those that a recipe gives.

    Raises:
        ValueError: a value is not allowed.
    """
    # Type checkers do not see that a settings class is one of attrs.
    unseen: Any = table
    changed: S = attrs.evolve(unseen, **changes)
    return changed


HOLDS: dict[str, Callable[[float, float], bool]] = {
    "≥": operator.ge,
    ">": operator.gt,
    "≤": operator.le,
    "<": operator.lt,
}


def _bound(symbol: str, bound: float) -> Callable[..., Any]:
    def validate(instance: Any, attribute: Any, value: Any) -> None:
        for item in value if isinstance(value, tuple | list) else (value,):
            # Of a setting such as int | Literal["auto"], words have no bounds.
            if isinstance(item, str):
                continue
            # Not the opposite comparison: NaN fails this one, but would pass that.
            if not HOLDS[symbol](item, bound):
                raise ValueError(f"expected {symbol} {bound}, got {item}")

    return validate


def _at_least(length: int) -> Callable[..., Any]:
    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if isinstance(value, str | tuple | list) and len(value) < length:
            raise ValueError(f"expected at least {length} {'character' if isinstance(value, str) else 'value'}(s)")

    return validate


def _one_of(choices: tuple[Any, ...]) -> Callable[..., Any]:
    def validate(instance: Any, attribute: Any, value: Any) -> None:
        if value not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"expected one of {listed}, got {value!r}")

    return validate
