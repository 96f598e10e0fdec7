"""Turn a recipe's values into those of settings, by type: nothing is converted that a recipe does not say."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cattrs

from rearkit.errors import did_you_mean
from rearkit.registry.setting_types import (
    SCALARS,
    in_words,
    is_enum,
    is_literal,
    is_table,
    is_tuple,
    is_union,
    items,
    members,
    values,
    with_article,
)

# No step, size or rate is beyond these; larger ones are slips of a key, and overflow in the middle of a run.
MOST_INT, MOST_FLOAT = 2**53, 1e15


def add_value_hooks(converter: cattrs.Converter) -> None:
    """Let a converter structure the types that settings may have, settings classes apart."""
    # cattrs' own hooks convert: they would turn the string "3" into 3, and 2.7 into 2.
    for scalar in SCALARS:
        converter.register_structure_hook(scalar, _scalar)
    converter.register_structure_hook_func(is_tuple, lambda value, t: _tuple(value, t, converter))
    converter.register_structure_hook_func(is_union, lambda value, t: _union(value, t, converter))
    converter.register_structure_hook_func(lambda t: is_enum(t) or is_literal(t), _choice)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(lambda t: t == dict[str, Any], _free_table)


def _scalar(value: Any, expected: type) -> Any:
    """Accept a value of exactly this type, or an int where a float is expected; never convert text."""
    # An enum whose members are strings or numbers themselves.
    if is_enum(expected):
        return _choice(value, expected)
    if type(value) is int and abs(value) > MOST_INT:
        raise ValueError(f"expected a number up to {MOST_INT} in size, got one of about {value.bit_length()} bits")
    if expected is float and type(value) is int:
        value = float(value)
    # Compared by `is`, since isinstance takes true for an int.
    if type(value) is not expected:
        raise TypeError(f"expected {with_article(expected)}, got {value!r}")
    # Not `>`, which NaN passes; a bound such as `> 0` is passed by infinity.
    if isinstance(value, float) and not abs(value) <= MOST_FLOAT:
        raise ValueError(f"expected a number up to {MOST_FLOAT:g} in size, got {value}")
    if isinstance(value, str):
        _no_nul(value)
    return value


def _no_nul(text: str) -> None:
    # No path, address or name has one, and the operating system's error about it names no key.
    if "\0" in text:
        raise ValueError(f"expected text without NUL characters, got {text!r}")


def _tuple(value: Any, t: Any, converter: cattrs.Converter) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected {with_article(t)}, got {value!r}")
    expected = items(t, len(value))
    if expected is None:
        raise TypeError(f"expected {len(typing.get_args(t))} values, got {len(value)}")
    found: list[Any] = []
    errors: list[Exception] = []
    for index, (item, of_type) in enumerate(zip(value, expected, strict=True)):
        try:
            found.append(converter.structure(item, of_type))
        # Any exception, as in cattrs' own code; marked as it does, so that the message has the index.
        except Exception as error:
            error.__notes__ = [*getattr(error, "__notes__", ()), cattrs.IterableValidationNote("", index, of_type)]
            errors.append(error)
    if errors:
        raise cattrs.IterableValidationError("", errors, t)
    return tuple(found)


def _union(value: Any, t: Any, converter: cattrs.Converter) -> Any:
    """Structure a value of one of several types; None is left out, since TOML has no null."""
    found = members(t)
    # A list or a table can be of one of them only, whose errors have the place inside.
    if isinstance(value, Mapping) and any(map(is_table, found)):
        found = tuple(filter(is_table, found))
    elif isinstance(value, list | tuple) and any(map(is_tuple, found)):
        found = tuple(filter(is_tuple, found))
    if len(found) == 1:
        return converter.structure(value, found[0])
    for member in found:
        try:
            return converter.structure(value, member)
        except (TypeError, ValueError, cattrs.BaseValidationError):
            continue
    raise TypeError(f"expected {with_article(t)}, got {value!r}")


def _choice(value: Any, t: Any) -> Any:
    """Accept one of the values of a literal or an enum, or the enum's member itself."""
    if is_enum(t) and isinstance(value, t):
        return value
    for each in values(t):
        # By type too, since True is equal to 1.
        if each == value and (type(each) is type(value) or (type(each) is float and type(value) is int)):
            return t(each) if is_enum(t) else each
    hint = did_you_mean(value, [each for each in values(t) if isinstance(each, str)]) if isinstance(value, str) else ""
    raise ValueError(f"expected {in_words(t)}, got {value!r}{hint}")


def _path(value: Any, t: Any) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"expected a path, got {value!r}")
    _no_nul(str(value))
    return Path(value)


def _free_table(value: Any, t: Any) -> Any:
    """Take a table such as `train.deepspeed` as it is."""
    if not isinstance(value, dict):
        raise TypeError(f"expected a table, got {value!r}")
    return value
