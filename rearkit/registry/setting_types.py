"""Types that settings may have: how they are told apart in a recipe, in words, and as the plain values of TOML.

A settings class with another type is refused when its component is made, since no recipe could give it a value.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

SCALARS: dict[type, str] = {int: "whole number", float: "number", str: "string", bool: "true or false"}
"""The types of TOML's single values, in words that its users know, rather than Python's names."""
PLURAL = {word: f"{word}s" for word in ("whole number", "number", "string", "path", "table")}
WHAT_WORKS = (
    "int, float, str, bool, Path, Enum and Literal with strings, numbers or true and false as values, tuple[X, ...], "
    "tuple[X, Y], dict[str, Any], a settings class, and X | Y or X | None of these"
)


def is_union(t: Any) -> bool:
    """Return whether a type is ``X | Y``, ``Union[X, Y]`` or ``Optional[X]``."""
    return isinstance(t, types.UnionType) or typing.get_origin(t) is typing.Union


def is_literal(t: Any) -> bool:
    """Return whether a type is ``Literal[...]``."""
    return typing.get_origin(t) is typing.Literal


def is_enum(t: Any) -> bool:
    """Return whether a type is an ``Enum``."""
    return isinstance(t, type) and issubclass(t, enum.Enum)


def is_tuple(t: Any) -> bool:
    """Return whether a type is ``tuple[...]``."""
    return typing.get_origin(t) is tuple


def takes_pairs(cls: type, name: str) -> bool:
    """Return whether a setting of a class takes a list beside single values."""
    return any(map(is_tuple, members(attrs.fields_dict(cls)[name].type)))


def is_table(t: Any) -> bool:
    """Return whether a type's values are tables: a settings class, or a free table."""
    return t == dict[str, Any] or (isinstance(t, type) and attrs.has(t))


def is_path(t: Any) -> bool:
    """Return whether a type is ``Path``."""
    return t is Path


def members(t: Any) -> tuple[Any, ...]:
    """Return the types of a union but None, those that take fewer values first; of another type, itself."""
    if not is_union(t):
        return (t,)
    found = [argument for argument in typing.get_args(t) if argument is not type(None)]
    # So that "auto" is a literal before it is any string, and 3 a whole number before it is any number.
    order = (is_literal, is_enum, lambda m: m is bool, lambda m: m is int)
    return tuple(sorted(found, key=lambda m: next((i for i, holds in enumerate(order) if holds(m)), len(order))))


def items(t: Any, length: int) -> tuple[Any, ...] | None:
    """Return the types of the items of a tuple of a length; None if the type has no tuples of it."""
    arguments = typing.get_args(t)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (arguments[0],) * length
    return arguments if len(arguments) == length else None


def values(t: Any) -> tuple[Any, ...]:
    """Return the plain values that a literal or an enum takes."""
    return tuple(member.value for member in t) if is_enum(t) else typing.get_args(t)


def in_words(t: Any) -> str:
    """Return what values of a type are, in words without an article."""
    if is_union(t):
        return " or ".join(in_words(member) for member in members(t))
    if is_enum(t) or is_literal(t):
        return "one of " + ", ".join(json.dumps(value) for value in values(t))
    if is_tuple(t):
        kinds = list(dict.fromkeys(in_words(item) for item in typing.get_args(t) if item is not Ellipsis))
        return f"list of {', '.join(PLURAL.get(kind, kind) for kind in kinds)}"
    if is_table(t):
        return "table"
    return "path" if is_path(t) else SCALARS.get(t, getattr(t, "__name__", str(t)))


def with_article(t: Any) -> str:
    """Return the same with articles, for messages."""
    words = [in_words(member) for member in members(t)]
    return " or ".join(word if word.startswith(("one of", "true")) else f"a {word}" for word in words)


def plain(value: Any) -> Any:
    """Turn a setting's value into what TOML and JSON can hold; tables and lists are left as they are."""
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def check_settings_class(cls: type, reserved: tuple[str, ...] = ()) -> None:
    """Check that a recipe can give every setting of a class a value.

    Args:
        cls: the settings class.
        reserved: keys that belong to the table itself.

    Raises:
        TypeError: a setting has a name or a type that does not work; the message says what does.
    """
    try:
        attrs.resolve_types(cls)
    except NameError as error:
        raise TypeError(
            f"{cls.__name__}: {error}: the types of settings must be names of its module when it runs, "
            "not only under TYPE_CHECKING"
        ) from None
    for field in attrs.fields(cls):
        if field.name in reserved:
            raise TypeError(f"{cls.__name__}.{field.name}: its table has a key of this name; rename the setting")
        for trouble in _troubles(field.type):
            raise TypeError(f"{cls.__name__}.{field.name}: {trouble}; what works: {WHAT_WORKS}")


def _troubles(t: Any) -> Iterator[str]:
    """Yield what is wrong with a type."""
    if t is None:
        yield "it has no type"
    elif is_union(t):
        yield from _ambiguities(members(t))
        for member in members(t):
            yield from _troubles(member)
    elif is_tuple(t):
        for item in typing.get_args(t):
            if item is not Ellipsis:
                yield from _troubles(item)
    elif is_enum(t) or is_literal(t):
        if odd := [value for value in values(t) if type(value) not in SCALARS]:
            yield f"{_name(t)} has the value {odd[0]!r}, which TOML cannot hold"
    elif isinstance(t, type) and attrs.has(t):
        try:
            check_settings_class(t)
        except TypeError as error:
            yield str(error).partition("; what works: ")[0]
    elif t not in SCALARS and not is_path(t) and t != dict[str, Any]:
        yield f"{_name(t)} is no type of a setting"


def _ambiguities(found: tuple[Any, ...]) -> Iterator[str]:
    """Yield what a value in a recipe could not be told by: two types whose values look alike there."""
    texts = [m for m in found if m is str or is_path(m) or (is_enum(m) and any(isinstance(v, str) for v in values(m)))]
    for alike in (texts, [m for m in found if is_tuple(m)], [m for m in found if is_table(m)]):
        if len(alike) > 1:
            yield f"{' and '.join(_name(m) for m in alike)} look alike in a recipe"


def _name(t: Any) -> str:
    return t.__name__ if isinstance(t, type) and not typing.get_args(t) else str(t).replace("typing.", "")
