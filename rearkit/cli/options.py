"""Arguments and options that several commands take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key: train.steps=10; repeatable.",
)


def recipe_options(command: Callable[..., None], required: bool = True) -> Callable[..., None]:
    """Add the argument RECIPE and the option ``--set`` to a command, which receives the loaded recipe.

    Args:
        command: called with ``recipe`` (None if left out) and its own options.
        required: False if RECIPE may be left out.
    """

    # Loaded here rather than in each command, so that every command checks and reports recipes alike.
    @click.argument("recipe", type=click.Path(path_type=Path), required=required)
    @SET
    @functools.wraps(command)
    def wrapped(recipe: Path | None, overrides: Sequence[str], **options: Any) -> None:
        from rearkit.recipe.loading import load_recipe

        command(None if recipe is None else load_recipe(recipe, overrides), **options)

    return wrapped


def optional_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an optional RECIPE, ``--set`` and ``--out`` to a command."""
    return recipe_options(OUT(command), required=False)


OUT = click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; left out: runs/NAME.")


NUM_GPUS = click.option(
    "--num-gpus", type=click.IntRange(1), help="Ranks to start on this machine: one per GPU, or CPU processes."
)
