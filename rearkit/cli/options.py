"""Arguments and options that several commands take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from rearkit.cli.given import Given

if TYPE_CHECKING:
    from rearkit.contracts import ImageSize

SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key: train.steps=10; repeatable.",
)

TRUST = click.option(
    "--trust", is_flag=True, help="Take from an exported model's recipe also images, commands, addresses, packages."
)


def complete_recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer files, and the names of recipes that come with rearkit, to shell completion."""
    from rearkit.recipe.recipe_files import own_recipes

    sweep = context.info_name == "sweep"
    # Files first: where bash is told to complete those, it forgets the words before.
    return [
        CompletionItem(incomplete, type="file"),
        *(
            CompletionItem(recipe.name, help=recipe.what)
            for recipe in own_recipes()
            if recipe.name.startswith(incomplete) and (recipe.sweep == sweep or context.info_name == "recipes")
        ),
    ]


def recipe_options(command: Callable[..., None], required: bool = True) -> Callable[..., None]:
    """Add the argument RECIPE and the options ``--set`` and ``--trust`` to a command, which receives what is `Given`.

    Args:
        command: called with that (None if RECIPE is left out) and its own options.
        required: False if RECIPE may be left out.
    """

    # Loaded here rather than in each command, so that every command checks and reports recipes alike.
    @click.argument("recipe", type=click.Path(path_type=Path), required=required, shell_complete=complete_recipes)
    @SET
    @TRUST
    @functools.wraps(command)
    def wrapped(recipe: Path | None, overrides: Sequence[str], trust: bool, **options: Any) -> None:
        from rearkit.recipe.loading import load_recipe

        given = None if recipe is None else Given(load_recipe(recipe, overrides, trust), recipe, overrides, trust)
        command(given, **options)

    return wrapped


def optional_recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an optional RECIPE, ``--set``, ``--trust`` and ``--out`` to a command."""
    return recipe_options(OUT(command), required=False)


class Size(click.ParamType):
    """A side in pixels, or height and width."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ImageSize:
        """Return one number for a square, and (height, width) for anything else."""
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isdecimal() and len(part) < 7 and int(part) for part in parts):
            self.fail("expected a side in pixels such as 64, or HEIGHTxWIDTH such as 64x32", param, ctx)
        height, width = int(parts[0]), int(parts[-1])
        return height if height == width else (height, width)


def size_option(told: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option ``--size``, with what a command says of it."""
    return click.option("--size", type=Size(), metavar="SIZE", help=f"Pixels: a side, or HEIGHTxWIDTH; {told}.")


OUT = click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; left out: runs/NAME.")


NUM_GPUS = click.option(
    "--num-gpus", type=click.IntRange(1), help="Ranks to start on this machine: one per GPU, or CPU processes."
)
