"""``recipes``: list the recipes that come with rearkit, and copy one to edit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rearkit.cli.examples import Command
from rearkit.cli.options import Output, complete_recipes

if TYPE_CHECKING:
    from rearkit.recipe.recipe_files import OwnRecipe


@click.command(cls=Command, example="recipes --copy mnist --to mine.toml")
@click.option(
    "--copy", "name", metavar="NAME", shell_complete=complete_recipes, help="Write this one to a file to edit."
)
@click.option("--to", type=Output(), help="The file; left out: NAME.toml in this folder.")
def recipes(name: str | None, to: Path | None) -> None:
    """List the recipes that come with rearkit: what each is, what it needs, how long it takes and on what."""
    if name is not None:
        copy_recipe(name, to)
    elif to is not None:
        raise click.UsageError("--to FILE needs --copy NAME")
    else:
        list_recipes()


def list_recipes() -> None:
    """Print a line for each recipe, below what those that follow need."""
    from rearkit.recipe.recipe_files import FOLDER, own_recipes

    found = own_recipes()
    click.echo(f"Recipes that come with rearkit, in {FOLDER}")
    _print_groups((recipe for recipe in found if not recipe.sweep), "run")
    _print_groups((recipe for recipe in found if recipe.sweep), "sweep")
    click.echo("\nTo edit one: python -m rearkit recipes --copy mnist --to mine.toml")


def _print_groups(recipes: Iterable[OwnRecipe], command: str) -> None:
    for needs, group in groupby(recipes, key=lambda recipe: recipe.needs):
        click.echo(f"\npython -m rearkit {command} NAME; needs {', '.join(needs) or 'nothing more'}")
        members = list(group)
        width = max(len(recipe.name) for recipe in members)
        for recipe in members:
            click.echo(f"  {recipe.name:<{width}}  {recipe.what} Takes {recipe.takes}.")


def copy_recipe(name: str, to: Path | None = None) -> Path:
    """Write a copy of a recipe that comes with rearkit, which extends what the original extends.

    Args:
        name: of the recipe.
        to: the file to write; left out, ``NAME.toml`` in the working folder. The copy is named after it.

    Raises:
        RecipeError: there is no such recipe.
        RearkitError: the file exists already, or is called as no run may be.
    """
    import tomli_w

    from rearkit.errors import RearkitError
    from rearkit.recipe.recipe_files import find_file, own_files
    from rearkit.recipe.table_checks import folder_name
    from rearkit.system.files import write_text

    original = own_files().get(name) or find_file(name)
    target = Path(f"{name}.toml") if to is None else to
    if target.exists():
        raise RearkitError(f"{target}: exists already; choose another file with --to")
    try:
        folder_name(None, None, target.stem)
    except ValueError as error:
        raise RearkitError(f"{target}: the copy is named after it: {error}; choose another file with --to") from None
    text = original.read_text(encoding="utf-8")
    # What lay beside the original, or a folder above, is found by its name from anywhere.
    text = re.sub(r'^(extends|recipe) = "(?:.*/)?(\w+)\.toml"', r'\1 = "\2"', text, flags=re.MULTILINE)
    name_line = tomli_w.dumps({"name": target.stem}).strip()
    # By a function, since the name may have what stands for something else in a replacement.
    text = re.sub(r'^name = ".*"', lambda _: name_line, text, count=1, flags=re.MULTILINE)
    write_text(target, text)
    command = "sweep" if re.search(r"^recipe = ", text, re.MULTILINE) else "run"
    click.echo(f"{target}: a copy of {name}; edit it, then: python -m rearkit {command} {target}")
    return target
