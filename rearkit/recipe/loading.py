"""Reading recipes: TOML with ``extends`` and ``--set``, and which file said what."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RecipeError, did_you_mean, first_line
from rearkit.recipe.checking import KeyPath, structure
from rearkit.recipe.tables import ComponentTable, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPORTED = "rearkit"  # what an exported model's metadata has its recipe under


@attrs.frozen
class Change:
    """A key of a recipe that is set from outside its files.

    Attributes:
        keys: the path to it; a whole number counts items of a list.
        value: in TOML's types.
        said: what said so, for errors.
    """

    keys: KeyPath
    value: Any
    said: str


def load_recipe(source: str | Path | Mapping[str, Any], overrides: Sequence[str | Change] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: path of a TOML file, or of a model that training exported, which has its recipe inside; or a mapping.
        overrides: ``key=value`` each, the key dotted (``train.steps``, ``regularizers.0.weight``), the value in TOML;
            or changes.

    Raises:
        RecipeError: everything that is wrong with it.
    """
    origins: dict[KeyPath, str] = {}
    if isinstance(source, Mapping):
        where, content = "<recipe>", copy.deepcopy(dict(source))
        if "extends" in content:
            raise RecipeError([f"{where}: extends: only a recipe file can extend another"])
    else:
        where, content = str(source), _read(Path(source), origins, ())
    changes = [override if isinstance(override, Change) else parse_override(override) for override in overrides]
    for i, change in enumerate(changes):
        _apply(change, content, origins, changes[:i])
    return structure(content, Recipe, where, origins)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Turn a recipe into plain TOML values, with every default written out; `load_recipe` takes it back."""
    plain = _plain(recipe)
    assert isinstance(plain, dict)
    return plain


def read_toml(path: Path, what: str = "recipe") -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        RecipeError: it is missing, cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.toml")])
        raise RecipeError([f"{path}: no such {what} file{near}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: cannot be read: {error}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError([f"{path}: not valid TOML: {error}"]) from None


def _read(path: Path, origins: dict[KeyPath, str], seen: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file and, below it, what it extends; note for each key which file set it."""
    if path.resolve() in seen:
        raise RecipeError([f"{path}: extends itself, through {' → '.join(p.name for p in seen)}"])
    content = _read_exported(path) if path.suffix == ".safetensors" else read_toml(path)
    base: dict[str, Any] = {}
    if "extends" in content:
        parent = content.pop("extends")
        if not isinstance(parent, str):
            raise RecipeError([f"{path}: extends: expected the path of a recipe file, got {parent!r}"])
        base = _read(path.parent / parent, origins, (*seen, path.resolve()))
    _note_origins(content, str(path), origins, ())
    return _merge(base, content)


def _read_exported(path: Path) -> dict[str, Any]:
    """Take the recipe out of an exported model."""
    from rearkit.weights import read_metadata

    try:
        content = json.loads(read_metadata(path)[EXPORTED])["recipe"]
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such file"]) from None
    except (KeyError, TypeError, ValueError):
        raise RecipeError([f"{path}: has no recipe inside; the models that rearkit exports have"]) from None
    except Exception as error:  # of safetensors, about a damaged file
        raise RecipeError([f"{path}: not a readable safetensors file: {first_line(error)}"]) from None
    assert isinstance(content, dict)
    return content


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one table over another: sub-tables merge, all else is replaced.

    A table whose ``name`` changes is replaced whole, since the settings under the old name belong to another component.
    """
    for key, value in top.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
            _merge(old, value)
        else:
            base[key] = value
    return base


def _note_origins(content: Mapping[str, Any], origin: str, origins: dict[KeyPath, str], prefix: KeyPath) -> None:
    for key, value in content.items():
        origins[(*prefix, key)] = origin
        if isinstance(value, dict):
            _note_origins(value, origin, origins, (*prefix, key))


def parse_override(text: str) -> Change:
    """Read ``key=value``.

    Raises:
        RecipeError: it is not of that form.
    """
    key, equals, raw = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise RecipeError([f"--set {text}: expected KEY=VALUE, such as train.steps=10"])
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": raw.strip()}  # a bare word is a string, so that a shell user need not quote twice
    if len(parsed) > 1:
        raise RecipeError([f"--set {key}={raw!r}: expected a single value"])
    return Change(path, parsed["value"], f"--set {text}")


def _apply(
    change: Change, content: dict[str, Any], origins: dict[KeyPath, str], earlier: Sequence[Change] = ()
) -> None:
    path, value, said = change.keys, change.value, change.said
    table: Any = content
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(table, list):
            if not part.isdecimal() or int(part) >= len(table):
                items = f"items 0 to {len(table) - 1}" if table else "no items"
                raise RecipeError([f"{said}: {'.'.join(path[:depth])} has {items}"])
            index: Any = int(part)
        elif isinstance(table, dict):
            index = part
            if not last:
                table.setdefault(index, {})
        else:
            raise RecipeError([f"{said}: {'.'.join(path[:depth])} is not a table"])
        if last:
            if part == "name" and depth and table.get("name", value) != value:  # the settings of another component
                table.clear()
                for other in earlier:  # but what was set for this one stays, in whatever order it was said
                    if len(other.keys) > depth and other.keys[:depth] == path[:depth]:
                        _apply(other, content, origins)
            table[index] = copy.deepcopy(value)
        else:
            table = table[index]
    for stale in [keys for keys in origins if keys[: len(path)] == path]:
        del origins[stale]
    origins[path] = said


def _plain(value: Any) -> Any:
    """Settings to TOML values; keys without a value are left out, since TOML has no null."""
    if isinstance(value, ComponentTable):
        own = {
            f.name: getattr(value, f.name) for f in attrs.fields(type(value)) if f.name not in ("settings", "provider")
        }
        return _plain(own) | _plain(value.settings)
    if attrs.has(type(value)):
        value = {field.name: getattr(value, field.name) for field in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
