"""Turn a recipe's plain values into settings, checking each field's type and range.

cattrs walks through the whole recipe and collects the errors, so that all errors are reported together, one per line.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import typing
from collections.abc import Mapping
from typing import Any

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override
from cattrs.v import transform_error

from rearkit.errors import PluginError, RecipeError, did_you_mean
from rearkit.recipe.setting_values import add_value_hooks
from rearkit.recipe.tables import ComponentTable
from rearkit.registry import plugins

KeyPath = tuple[str, ...]
T = typing.TypeVar("T")
# Begins a message that goes on with JSON. cattrs passes errors on as text only, so that a list of keys, of which each
# becomes a line of its own with a file and a suggestion, has to travel inside a text.
UNKNOWN_KEYS = "unknown keys: "


def structure(content: Mapping[str, Any], cls: type[T], where: str, origins: Mapping[KeyPath, str]) -> T:
    """Check a recipe's content and turn it into settings.

    Args:
        content: the recipe as plain values.
        cls: the settings class of the whole, such as `rearkit.recipe.tables.Recipe`.
        where: the recipe's name in error messages.
        origins: the file or ``--set`` option that each key comes from.

    Raises:
        RecipeError: all errors in the recipe.
    """
    try:
        return _converter().structure(content, cls)
    except cattrs.BaseValidationError as error:
        # `from None`: a user reads these lines, not the traceback of cattrs.
        raise RecipeError(_problems(error, where, origins, content)) from None


def as_table(settings: Any) -> dict[str, Any]:
    """Turn settings into the table that `structure` takes; None stands for what a recipe leaves out."""
    return attrs.asdict(settings, filter=lambda field, value: value is not None)


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True)
    add_value_hooks(converter)
    # A factory, so that the code that cattrs generates for a class is made once and kept.
    converter.register_structure_hook_factory(
        lambda t: isinstance(t, type) and attrs.has(t) and not issubclass(t, ComponentTable),
        lambda t: _table_hook(t, converter),
    )
    # Tables of components have no fixed fields: which ones there are depends on the component named inside.
    converter.register_structure_hook_func(
        lambda t: isinstance(t, type) and issubclass(t, ComponentTable),
        lambda value, cls: _component(value, cls, converter),
    )
    return converter


def _table_hook(cls: type, converter: cattrs.Converter) -> Any:
    """Return a hook that structures a table field by field and runs each field's validator, to find all errors."""
    # Annotations are strings under `from __future__ import annotations`; cattrs needs the types.
    attrs.resolve_types(cls)

    def field_hook(attribute: attrs.Attribute[Any]) -> Any:
        def structure(value: Any, t: Any) -> Any:
            result = converter.structure(value, t)
            # Here as well as in the class's __init__, which stops at the first validator that fails.
            if attribute.validator is not None:
                attribute.validator(None, attribute, result)
            return result

        return structure

    hooks: Any = {field.name: override(struct_hook=field_hook(field)) for field in attrs.fields(cls)}
    structure: Any = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **hooks
    )

    # The generated function expects a mapping, and would fail with an error that says nothing to a user.
    def checked(value: Any, t: type) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"expected a table, got {value!r}")
        return structure(value, t)

    return checked


def _component(value: Any, cls: type[ComponentTable], converter: cattrs.Converter) -> ComponentTable:
    """Structure a component's table by the settings class of the component that it names."""
    # Of no component: it stands for a data source that was left out of an exported model.
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a table with the name of a {cls.kind}, got {value!r}")
    try:
        if not isinstance(value.get("name"), str):
            raise ValueError(f"expected the name of a {cls.kind}: {', '.join(plugins.registry().names(cls.kind))}")
        component = plugins.find(cls.kind, value["name"])
    except (ValueError, PluginError) as error:
        # Without a known component, no other key of the table can be checked.
        raise cattrs.ClassValidationError("", [_at_key(error, "name")], cls) from None
    # Keys of the table itself beyond the component's settings: a tokenizer's weights and fit.
    own = {a.name: a for a in attrs.fields(cls) if a.name not in ("name", "settings", "provider")}
    attrs.resolve_types(cls)
    rest = {key: item for key, item in value.items() if key != "name" and key not in own}
    extra: dict[str, Any] = {}
    errors: list[Exception] = []
    for key, attribute in own.items():
        if key in value:
            try:
                extra[key] = converter.structure(value[key], attribute.type)
            # Any exception, as in cattrs' own code: `_describe` turns each into a line.
            except Exception as error:
                errors.append(_at_key(error, key))
    settings: Any = None
    try:
        settings = converter.structure(rest, component.settings)
    except cattrs.BaseValidationError as error:
        for inner in error.exceptions:
            if isinstance(inner, cattrs.ForbiddenExtraKeysError):
                # So that the list of known keys also has the table's own keys.
                inner = _SurplusKeys(inner, ("name", *own))
            errors.append(inner)
    if errors:
        raise cattrs.ClassValidationError(f"while structuring {cls.kind}", errors, component.settings)
    return cls(name=component.name, settings=settings, provider=component.provider, **extra)


class _SurplusKeys(cattrs.ForbiddenExtraKeysError):
    """Unknown keys in a component's table, which has keys of its own besides the component's settings."""

    def __init__(self, error: cattrs.ForbiddenExtraKeysError, own: tuple[str, ...]) -> None:
        super().__init__(error.message, error.cl, error.extra_fields)
        self.own = own


def _at_key(error: Exception, key: str) -> Exception:
    """Mark an error as belonging to a key, as cattrs does."""
    error.__notes__ = [cattrs.AttributeValidationNote("", key, None)]
    return error


def _problems(error: Exception, where: str, origins: Mapping[KeyPath, str], content: Mapping[str, Any]) -> list[str]:
    """Return one line for each error below ``error``: file, [table], key, what was expected."""
    problems: list[str] = []
    for line in transform_error(error, path="$", format_exception=_describe):
        # transform_error appends the path to the message: `... @ $.train.steps`.
        message, _, path = line.rpartition(" @ $")
        keys = tuple(part for part in path.replace("[", ".").replace("]", "").split(".") if part)
        # The nearest table above counts if the key itself is in no file: a missing key is reported for the file that
        # has the table.
        origin = next((origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in origins), where)
        if not message.startswith(UNKNOWN_KEYS):
            problems.append(f"{origin}: {_location(keys, content)}{message}")
            continue
        # One line for each key: they may come from different files, and each has its own suggestion.
        unknown, known = json.loads(message.removeprefix(UNKNOWN_KEYS))
        for key in unknown:
            text = f"unknown key{did_you_mean(key, known)}; known: {', '.join(known)}"
            problems.append(f"{origins.get((*keys, key), origin)}: {_location((*keys, key), content)}{text}")
    requires = content.get("requires")
    # The text of `Registry.get`. Only then can a package that is not installed be the reason.
    if any("unknown" in p and "; installed:" in p for p in problems) and isinstance(requires, list):
        for entry in requires:
            name, _, source = (part.strip() for part in str(entry).partition("@"))
            if name and not _installed(name):
                named_by = origins.get(("requires",), where)
                problems.append(f"{named_by}: requires: {name} is not installed; run: pip install {source or name}")
    return problems


def _location(keys: KeyPath, content: Mapping[str, Any]) -> str:
    """Return ``[table] key: ``, or ``[table]: `` if the error is about a table as a whole."""
    value: Any = content
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and keys:
        return f"[{'.'.join(keys)}]: "
    return f"[{'.'.join(keys[:-1])}] {keys[-1]}: " if len(keys) > 1 else f"{keys[0]}: " if keys else ""


def _describe(error: BaseException, expected: type | None) -> str:
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        own = error.own if isinstance(error, _SurplusKeys) else ()
        known = sorted([*own, *(field.name for field in attrs.fields(error.cl))])
        return UNKNOWN_KEYS + json.dumps([sorted(error.extra_fields), known])
    # For a missing key, cattrs reports the KeyError of its generated code.
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    if isinstance(error, TypeError | ValueError | PluginError):
        return str(error).replace("\n", " ")
    return f"{type(error).__name__}: {error}"


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
