"""The recipe inside an exported model's file. Somebody else may have written it, so it is data and starts nothing.

Of it, only what describes the model, its training and its sampling is taken. What names something outside the file
(images, commands, addresses, packages, accounts) is left out and said, unless the user trusts the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from rearkit.errors import PluginError, RearkitError, RecipeError, first_line, shortened
from rearkit.recipe.recipe_files import check_depth
from rearkit.recipe.settings import setting, settings
from rearkit.recipe.tables import DatasetTable, Recipe
from rearkit.recipe.train_table import TrainTable
from rearkit.registry import plugins
from rearkit.registry.provenance import is_built_in
from rearkit.system.console import say_once
from rearkit.system.files import check_disk

if TYPE_CHECKING:
    from rearkit.contracts import Classes

# The key in the metadata of an exported model's file under which its recipe is.
EXPORTED = "rearkit"
# Stands for the name of a data source that was left out; no component can have it.
LEFT_OUT = "(left out)"
# What a file never decides without trust. `extends` would read another file in its place.
OUTSIDE = (
    ("extends",),
    ("needs",),
    ("requires",),
    ("tokens", "pretokenized"),
    ("backbone", "weights"),
    ("backbone", "weights_key"),
    ("train", "deepspeed"),
    ("train", "trackers"),
    ("train", "offload_optimizer"),
    ("train", "offload_parameters"),
    ("train", "offload_path"),
    ("evaluate", "reference"),
    ("evaluate", "feature_weights"),
)


@settings
class LeftOutSource:
    """What is kept of a data source that was left out: no more than its classes."""

    num_classes: int | None = setting("number of classes, where the recipe says it", default=None)
    unlabelled: bool = setting("whether its images have no classes", default=False)


def read_exported(path: Path, trust: bool) -> dict[str, Any]:
    """Return the recipe in an exported model's file, and say what of it is left out.

    Args:
        path: the file.
        trust: whether everything is taken.

    Raises:
        RecipeError: the file is missing, damaged or has no recipe inside.
    """
    about = read_about(path)
    content = about.get("recipe")
    if not isinstance(content, dict):
        raise RecipeError([f"{path}: has no recipe inside; the models that rearkit exports have"])
    check_depth(content, str(path))
    if trust:
        return content
    if dropped := _leave_out(content, about.get("classes")):
        say_once(
            f"{path}: left out of its recipe, since others may have written it: {', '.join(dropped)}; "
            "--trust (in Python: trust=True) takes them"
        )
    return content


def read_about(path: Path) -> dict[str, Any]:
    """Return what an exported model's file says of itself: recipe, steps, classes.

    Raises:
        RecipeError: the file is missing, damaged or was not exported by rearkit.
        StorageError: the disk fails.
    """
    from rearkit.weights import read_metadata

    try:
        content = json.loads(read_metadata(path)[EXPORTED])
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such file"]) from None
    # RecursionError: nested deeper than Python goes.
    except (KeyError, TypeError, ValueError, RecursionError):
        content = None
    # safetensors has its own errors for a damaged file.
    except Exception as error:
        check_disk(path, error)
        raise RecipeError([f"{path}: not a readable safetensors file: {first_line(error)}"]) from None
    if not isinstance(content, dict):
        raise RecipeError([f"{path}: has no recipe inside; the models that rearkit exports have"])
    return content


def without_source(content: Mapping[str, Any]) -> DatasetTable:
    """Return the table that stands for a data source that was left out, of what `read_exported` kept of it."""
    number, unlabelled = content.get("num_classes"), content.get("unlabelled")
    known = LeftOutSource(
        num_classes=number if type(number) is int and number > 0 else None, unlabelled=unlabelled is True
    )
    return DatasetTable(LEFT_OUT, known)


def left_out_classes(recipe: Recipe) -> Classes | None:
    """Return the classes of a data source that was left out, as far as the file says; None of any other."""
    # Not at the top: it would import torch, before anything needs it.
    from rearkit.contracts import Classes

    _check_read(recipe)
    kept = recipe.data.source.settings
    return Classes(kept.num_classes) if isinstance(kept, LeftOutSource) and kept.num_classes else None


def _check_read(recipe: object) -> None:
    # From Python, a name or a mapping is easily given where a recipe is meant.
    if not isinstance(recipe, Recipe):
        raise RearkitError(
            f"expected a recipe, as rearkit.load_recipe(…) returns it; got {shortened(repr(recipe), 80)}"
        )


def check_source(recipe: Recipe) -> None:
    """Check that a recipe has a data source, before anything is run.

    Raises:
        RecipeError: it was left out.
        RearkitError: it is no recipe yet.
    """
    _check_read(recipe)
    if recipe.data.source.name == LEFT_OUT:
        raise RecipeError(
            [
                f"{recipe.name}: [data.source]: the file's own was left out, since others may have written it; "
                "--trust takes it, --set 'data.source={name=\"…\", …}' gives another"
            ]
        )


def _leave_out(content: dict[str, Any], classes: Any) -> list[str]:
    """Take out of a recipe what names something outside the file; return the dotted keys."""
    dropped = []
    for keys in OUTSIDE:
        table: Any = content
        for key in keys[:-1]:
            table = table.get(key) if isinstance(table, dict) else None
        value = table.pop(keys[-1], None) if isinstance(table, dict) else None
        # Exported recipes are written out in full, with an empty `needs` and all defaults.
        if value and not (keys[:-1] == ("train",) and _is_default(keys[-1], value)):
            dropped.append(".".join(keys))
    data = content.get("data")
    if isinstance(data, dict) and _names_something(data.get("source")):
        source = data.pop("source")
        number = classes.get("number") if isinstance(classes, dict) else source.get("num_classes")
        data[LEFT_OUT] = {"num_classes": number, "unlabelled": source.get("unlabelled")}
        dropped.append("data.source")
    # Noise stays: its extra tokens are part of the backbone's sizes. Regularizers are for training alone.
    entries = content.get("regularizers")
    if isinstance(entries, list) and any(_of_plugin("regularizer", entry) for entry in entries):
        content["regularizers"] = [entry for entry in entries if not _of_plugin("regularizer", entry)]
        dropped.append("regularizers")
    return dropped + list(_drop_addresses(content, ""))


def _is_default(key: str, value: Any) -> bool:
    """Return whether ``[train]`` has this value where a recipe says nothing, so that leaving it out changes nothing."""
    default = getattr(attrs.fields(TrainTable), key).default  # type: ignore[arg-type]
    if not attrs.has(type(default)):
        return bool(value == default)
    # Key by key: a file of another version has other keys.
    known = attrs.asdict(default)
    return isinstance(value, dict) and all(key in known and value[key] == known[key] for key in value)


def _names_something(source: Any) -> bool:
    """Return whether a data source is told anything in words, such as a place, beside its name."""
    return isinstance(source, dict) and (
        _of_plugin("dataset", source) or any(key != "name" and not isinstance(source[key], int) for key in source)
    )


def _of_plugin(kind: str, table: Any) -> bool:
    """Return whether a table names a component of a third party."""
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        return False
    try:
        return not is_built_in(plugins.find(kind, table["name"]).provider)
    # Not installed; the check of the recipe says so where it matters, which a component for training only does not.
    except PluginError:
        return True


def _drop_addresses(table: Any, where: str) -> Iterator[str]:
    """Take commands and addresses out of tables, wherever they stand; yield their dotted keys."""
    for key, value in list(table.items() if isinstance(table, dict) else enumerate(table)):
        place = f"{where}{key}"
        if isinstance(value, str) and isinstance(table, dict) and (value.startswith("pipe:") or "://" in value):
            del table[key]
            yield place
        elif isinstance(value, dict | list):
            yield from _drop_addresses(value, f"{place}.")
