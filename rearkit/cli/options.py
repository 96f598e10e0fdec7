"""Arguments and options that several commands take."""

from __future__ import annotations

import functools
import math
import os
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


class FiniteRange(click.FloatRange):
    """A number in a range, and neither NaN, which click lets pass every range, nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class Output(click.Path):
    """A file, or a folder, that a command writes: refused before the work begins where it cannot be written.

    Args:
        folder: whether it is a folder.
    """

    def __init__(self, folder: bool = False) -> None:
        super().__init__(path_type=Path)
        self.folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; nothing is made of it yet."""
        path = Path(value)
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            place = next(above for above in path.parents if os.path.lexists(above))
        except OSError as error:  # a name that is too long, or below a folder that cannot be read
            self.fail(f"{path}: {error.strerror}; choose another name", param, ctx)
        else:
            if path.is_dir() != self.folder:
                self.fail(f"{path} is {'no folder' if self.folder else 'a folder'}; choose another name", param, ctx)
            place = path if self.folder else path.parent
        if not place.is_dir():
            self.fail(f"{path} cannot be written, as {place} is no folder; choose another place", param, ctx)
        if not os.access(place, os.W_OK | os.X_OK):
            self.fail(f"{path} cannot be written, without permission to write into {place}", param, ctx)
        return path


def size_option(told: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option ``--size``, with what a command says of it."""
    return click.option("--size", type=Size(), metavar="SIZE", help=f"Pixels: a side, or HEIGHTxWIDTH; {told}.")


OUT = click.option("--out", type=click.Path(path_type=Path), help="Folder of the run; left out: runs/NAME.")


NUM_GPUS = click.option(
    "--num-gpus", type=click.IntRange(1), help="Ranks to start on this machine: one per GPU, or CPU processes."
)
