"""Sweep files: variants, a grid and seeds on top of one recipe, and the runs that follow from them.

name = "weights"
recipe = "base.toml"                            # beside this file
seeds = [0, 1, 2]                               # of training and sampling; data, tokenizer and scores stay the same

[grid]                                          # every combination of the listed values
regularizers.0.weight = [0.1, 1.0, 10.0]

[variants.plain]                                # or named sets of keys; each is combined with the whole grid
noise.name = "none"
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RecipeError
from rearkit.recipe.checking import KeyPath, structure
from rearkit.recipe.loading import Change, load_recipe, parse_override
from rearkit.recipe.recipe_files import find_file, read_toml
from rearkit.recipe.settings import setting, settings
from rearkit.recipe.tables import Recipe

# Names of sweeps and variants become parts of folder names.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_BY_SEEDS = "the seeds of training and sampling are the sweep's `seeds`"
OWN: Mapping[KeyPath, str] = {
    ("name",): "each run is named after its variant and seed",
    ("train", "seed"): _BY_SEEDS,
    ("sample", "seed"): _BY_SEEDS,
}
"""Keys that a sweep sets in the recipe of each run, and by what."""


@settings
class SweepTable:
    """A sweep file."""

    name: str = setting("name of the sweep; its files go to runs/NAME", min_len=1)
    recipe: str = setting("the recipe that all runs start from: a path relative to this file, or a name")
    seeds: tuple[int, ...] = setting(
        "each variant is trained and sampled once with each seed", default=(0,), ge=0, min_len=1
    )
    variants: dict[str, Any] = setting("named sets of keys", default=attrs.Factory(dict))
    grid: dict[str, Any] = setting("lists of values of keys", default=attrs.Factory(dict))
    published: dict[str, Any] = setting("somebody else's figures by variant, shown beside", default=attrs.Factory(dict))
    published_as: str = setting("what those figures are", default="published")
    prediction: str = setting("what you expect, and why; written down before the runs", default="", since="0.2.0")
    expected: tuple[str, ...] = setting(
        "that prediction as an order: variants from the lowest FID to the highest", default=(), since="0.2.0"
    )
    resamples: int = setting(
        "bootstrap draws of each run's samples, from which the probability of the order by FID comes; 0: none",
        default=0,
        ge=0,
        le=10_000,
        since="0.2.0",
    )
    diagnose: int = setting(
        "held-out images to diagnose each run on; 0: none", default=0, ge=0, le=1_000_000, since="0.2.0"
    )


@attrs.frozen
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of the run and of its folder in the sweep's folder.
        variant: name of the variant; its runs differ by their seed only.
        recipe: what to run.
    """

    name: str
    variant: str
    recipe: Recipe


@attrs.frozen
class Sweep:
    """A sweep, read and checked.

    Attributes:
        name: of the sweep.
        variants: names, in the file's order.
        runs: all variants with the first seed, then with the next, so that an unfinished sweep compares all variants.
        table: the sweep file's own keys.
    """

    name: str
    variants: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    table: SweepTable


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file, and check the recipe of each of its runs.

    Args:
        path: of the TOML file, or the name of one that comes with rearkit.
        overrides: ``key=value`` each, for all runs; variants and grid are applied on top.

    Raises:
        RecipeError: the file is wrong, or the recipe of a run is; lists all errors of the first such run.
    """
    path = find_file(path, "sweep")
    content = read_toml(path, "sweep")
    if "recipe" not in content and {"extends", "tokenizer", "backbone"} & content.keys():
        raise RecipeError([f"{path}: is a recipe, not a sweep; run: python -m rearkit run {path}"])
    table = structure(content, SweepTable, str(path), {})
    common = [parse_override(text) for text in overrides]
    variants = list(_variants(table, path))
    _check_own(table, path, common)
    names = tuple(name for name, _ in variants)
    if not all(PLAIN_NAME.fullmatch(name) for name in (table.name, *table.variants)):
        raise RecipeError([f"{path}: name, [variants]: a name is made of letters, digits, '.', '_' and '-'"])
    for variant, figure in table.published.items():
        if variant not in names or type(figure) not in (int, float):
            known = ", ".join(names)
            raise RecipeError([f"{path}: [published] {variant}: expected a number for one of the variants: {known}"])
    if unknown := [name for name in table.expected if name not in names]:
        raise RecipeError([f"{path}: expected: no variant {unknown[0]!r}; there are {', '.join(names)}"])
    if len(table.expected) == 1 or len(set(table.expected)) < len(table.expected):
        raise RecipeError([f"{path}: expected: an order needs two variants or more, each once"])
    runs = []
    # Each recipe is loaded, and so checked, before anything runs: the last run must not fail after days on a typo.
    for seed, (variant, changes) in itertools.product(table.seeds, variants):
        name = f"{file_name(variant)}-s{seed}"
        said = f"{path}: run {name}"
        # Not the recipe's own seed: that is the seed of data, tokenizer and classifier, which all runs share.
        own = {("name",): recipe_name(table.name, name), ("train", "seed"): seed, ("sample", "seed"): seed}
        recipe = load_recipe(find_file(table.recipe, beside=path), [*common, *_as_changes({**changes, **own}, said)])
        runs.append(PlannedRun(name, variant, recipe))
    # Equal names would mean one folder for two runs.
    if len({run.name for run in runs}) < len(runs):
        raise RecipeError([f"{path}: seeds, [grid]: a value is listed twice"])
    return Sweep(table.name, names, tuple(runs), table)


def _check_own(table: SweepTable, path: Path, common: Sequence[Change]) -> None:
    """Check that nobody sets a key that the sweep sets: the value would be dropped, and rows named after it.

    Raises:
        RecipeError: the changes for all runs, a variant or the grid set such keys.
    """
    given = [(change.said, change.keys, change.value) for change in common]
    for name, changes in table.variants.items():
        given += [(f"{path}: [variants] {name}", keys, value) for keys, value in _flat(changes)]
    given += [(f"{path}: [grid]", keys, value) for keys, values in _flat(table.grid) for value in values]
    # Of a table given as one value, too.
    found = [(said, key) for said, keys, value in given for key, _ in _flat({".".join(keys): value}) if key in OWN]
    if found:
        raise RecipeError(list(dict.fromkeys(f"{said}: {'.'.join(key)}: not here; {OWN[key]}" for said, key in found)))


def recipe_name(sweep: str, run: str) -> str:
    """Return the name of the recipe of a sweep's run, to which the run's folder belongs."""
    return f"{sweep}-{run}"


def file_name(variant: str) -> str:
    """Return a variant's name as a part of names of files and folders."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", variant)


def _variants(table: SweepTable, path: Path) -> Iterator[tuple[str, dict[KeyPath, Any]]]:
    """Yield each variant's name and keys: every named variant with every combination of the grid.

    Raises:
        RecipeError: a grid entry is not a list, or a variant is not a table.
    """
    axes: list[list[tuple[KeyPath, Any]]] = []
    for keys, values in _flat(table.grid):
        if not isinstance(values, list) or not values:
            raise RecipeError([f"{path}: [grid] {'.'.join(keys)}: expected a list of values, got {values!r}"])
        axes.append([(keys, value) for value in values])
    # Without named variants, the grid alone: one variant without a name and without keys of its own.
    named: dict[str, Any] = table.variants or {"": {}}
    for name, changes in named.items():
        if not isinstance(changes, dict):
            raise RecipeError([f"{path}: [variants] {name}: expected a table of keys, got {changes!r}"])
        for point in itertools.product(*axes):
            words = [name, *(f"{_short(keys, axes)}={_word(value)}" for keys, value in point)]
            # The grid's value comes last, so it wins over the same key in a named variant.
            yield ", ".join(filter(None, words)) or "all", dict(_flat(changes)) | dict(point)


def _flat(table: Mapping[str, Any], prefix: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the keys of nested tables as paths, with their values; a quoted key with dots is a path too."""
    for key, value in table.items():
        keys = (*prefix, *key.split("."))
        # An empty table is a value: it has no keys that could stand for it.
        if isinstance(value, dict) and value:
            yield from _flat(value, keys)
        else:
            yield keys, value


def _short(keys: KeyPath, axes: Sequence[Sequence[tuple[KeyPath, Any]]]) -> str:
    """Return the last part of a key, or all of it if another axis of the grid ends in the same part."""
    alike = sum(axis[0][0][-1] == keys[-1] for axis in axes)
    return keys[-1] if alike == 1 else ".".join(keys)


def _word(value: Any) -> str:
    """Return a value as part of a name: floats in short form, unless that form would lose digits."""
    if not isinstance(value, float):
        return str(value)
    # Two values must not get the same name, and so the same folder.
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _as_changes(values: Mapping[KeyPath, Any], said: str) -> list[Change]:
    return [Change(keys, value, said) for keys, value in values.items()]
