"""Reading recipes: TOML files with ``extends``, and ``--set``, keeping track of which source set each key."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RecipeError, first_line, shortened
from rearkit.recipe.checking import KeyPath, structure
from rearkit.recipe.exported import LEFT_OUT, read_exported, without_source
from rearkit.recipe.recipe_files import DEEPEST, TOO_DEEP, check_depth, find_file, is_exported, missing, read_toml
from rearkit.recipe.tables import ComponentTable, Recipe
from rearkit.registry.setting_types import plain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Characters of a change that its messages repeat.
SAID = 500
SWEEP_KEYS = {"variants", "grid", "seeds"}


@attrs.frozen
class Change:
    """A change of one recipe key from outside the recipe's files.

    Attributes:
        keys: the path to the key; a number in it is the index of a list's item.
        value: the new value, of a TOML type.
        said: the source of the change, for error messages.
    """

    keys: KeyPath
    value: Any
    said: str


def load_recipe(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str | Change] = (), trust: bool = False
) -> Recipe:
    """Read and check a recipe.

    Args:
        source: name of a recipe that comes with rearkit; path of a TOML file, or of an exported model, which contains
            its recipe; or a mapping.
        overrides: changes, or texts ``key=value`` with a dotted key (``train.steps``, ``regularizers.0.weight``) and a
            value in TOML's syntax.
        trust: of an exported model, also take what its recipe names outside the file: images, commands, addresses,
            packages (`rearkit.recipe.exported`).

    Raises:
        RecipeError: all errors in the recipe.
    """
    origins: dict[KeyPath, str] = {}
    if isinstance(source, Mapping):
        where = "<recipe>"
        check_depth(source, where)
        # Copied, since overrides are written into it.
        content = copy.deepcopy(dict(source))
        if "extends" in content:
            raise RecipeError([f"{where}: extends: only a recipe file can extend another"])
    else:
        path = find_file(source)
        where = str(path)
        content = _read(path, origins, (), trust)
        if "recipe" in content and SWEEP_KEYS & content.keys():
            raise RecipeError([f"{where}: is a sweep, not a recipe; run: python -m rearkit sweep {where}"])
    changes = [override if isinstance(override, Change) else parse_override(override) for override in overrides]
    for i, change in enumerate(changes):
        _apply(change, content, origins, changes[:i])
    data = content.get("data")
    if isinstance(data, dict) and (kept := data.pop(LEFT_OUT, None)) is not None and "source" not in data:
        data["source"] = without_source(kept)
    return structure(content, Recipe, where, origins)


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Turn a recipe into plain TOML values, with all defaults written out; `load_recipe` reads it back."""
    plain = _plain(recipe)
    assert isinstance(plain, dict)
    return plain


def _read(path: Path, origins: dict[KeyPath, str], seen: tuple[Path, ...], trust: bool) -> dict[str, Any]:
    """Read a file and, recursively, the file it extends; record in ``origins`` which file set each key."""
    if len(seen) >= DEEPEST:
        raise RecipeError([f"{seen[0]}: extends more than {DEEPEST} files, one through the other; put them together"])
    if path.resolve() in seen:
        raise RecipeError([f"{path}: extends itself, through {' → '.join(p.name for p in seen)}"])
    content = read_exported(path, trust) if is_exported(path) else read_toml(path)
    base: dict[str, Any] = {}
    if "extends" in content:
        parent = content.pop("extends")
        if not isinstance(parent, str):
            raise RecipeError([f"{path}: extends: expected the path of a recipe file, got {parent!r}"])
        # Relative to the extending file, not to the working directory.
        file = find_file(parent, beside=path)
        if not file.exists():
            raise RecipeError([f"{path}: extends: {missing(file, besides=(*seen, path.resolve()))}"])
        base = _read(file, origins, (*seen, path.resolve()), trust)
    # After the base's, so that this file's entries replace those of the file that it extends.
    _note_origins(content, str(path), origins, ())
    return _merge(base, content)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``top`` into ``base``: tables are merged key by key, all other values are replaced.

    A table with another ``name`` is replaced as a whole: the settings under the old name belong to another component.
    Under no name, they belong to whichever the other file names.
    """
    for key, value in top.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and not _renamed(old, value):
            _merge(old, value)
        else:
            base[key] = value
    return base


def _renamed(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "name" in old and "name" in new and old["name"] != new["name"]


def _note_origins(content: Mapping[str, Any], origin: str, origins: dict[KeyPath, str], prefix: KeyPath) -> None:
    for key, value in content.items():
        origins[(*prefix, key)] = origin
        if isinstance(value, dict):
            _note_origins(value, origin, origins, (*prefix, key))


def parse_override(text: str) -> Change:
    """Parse ``key=value``.

    Raises:
        RecipeError: the text does not have that form.
    """
    key, equals, raw = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    said = shortened(f"--set {text}", SAID)
    if len(path) > DEEPEST:
        raise RecipeError([f"{said}: {TOO_DEEP}"])
    if not equals or not all(path):
        raise RecipeError([f"--set {text}: expected KEY=VALUE, such as train.steps=10"])
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except tomllib.TOMLDecodeError:
        # A bare word is a string, so that nobody has to quote for the shell and for TOML.
        parsed = {"value": raw.strip()}
    # A number of thousands of digits; lists in lists.
    except ValueError as error:
        raise RecipeError([f"{said}: {first_line(error)}"]) from None
    except RecursionError:
        raise RecipeError([f"{said}: {TOO_DEEP}"]) from None
    check_depth(parsed, said)
    # A line break in the value can start another TOML assignment.
    if len(parsed) > 1:
        raise RecipeError([f"--set {key}={raw!r}: expected a single value"])
    return Change(path, parsed["value"], said)


def _apply(
    change: Change, content: dict[str, Any], origins: dict[KeyPath, str], earlier: Sequence[Change] = ()
) -> None:
    path = change.keys
    value = change.value
    said = change.said
    table: Any = content
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(table, list):
            # Python refuses to read thousands of digits.
            if not part.isdecimal() or len(part) > 9 or int(part) >= len(table):
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
            # Another component: the settings in the table are not its own. What earlier overrides set in the table is
            # meant for it, though, so that their order does not matter.
            if part == "name" and depth and table.get("name", value) != value:
                table.clear()
                for other in earlier:
                    if len(other.keys) > depth and other.keys[:depth] == path[:depth]:
                        _apply(other, content, origins)
            table[index] = copy.deepcopy(value)
        else:
            table = table[index]
    # A replaced table's keys are gone, and errors in the new one must not name their files.
    for stale in [keys for keys in origins if keys[: len(path)] == path]:
        del origins[stale]
    origins[path] = said


def _plain(value: Any) -> Any:
    """Turn settings into TOML values, without the keys that are None, since TOML has no null."""
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
    return plain(value)
