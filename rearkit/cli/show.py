"""``show``: print a recipe in full, with its sizes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from rearkit.cli.examples import Command
from rearkit.cli.given import Given
from rearkit.cli.options import recipe_options, size_option

if TYPE_CHECKING:
    from rearkit.contracts import ImageSize
    from rearkit.recipe.tables import Recipe


@click.command(cls=Command, example="show mnist")
@recipe_options
@click.option(
    "--num-gpus", type=click.IntRange(1), default=1, show_default=True, help="Ranks to configure DeepSpeed for."
)
@size_option("other than the recipe's")
def show(given: Given, num_gpus: int, size: ImageSize | None) -> None:
    """Show RECIPE in full: settings, providers, parameters, steps, epochs, DeepSpeed's configuration."""
    from rearkit.stages.resizing import resized

    show_recipe(given.recipe if size is None else resized(given.recipe, size), num_gpus)


def show_recipe(recipe: Recipe, ranks: int = 1) -> None:
    """Print a recipe with all defaults, its components' providers, its sizes, and DeepSpeed's configuration.

    Args:
        recipe: what to show.
        ranks: number of ranks that DeepSpeed is configured for.

    Raises:
        RecipeError: its batches don't divide over the ranks, or DeepSpeed would refuse its configuration.
    """
    import tomli_w
    from rich.markup import escape
    from rich.table import Table

    from rearkit.planning.sizes import recipe_sizes
    from rearkit.recipe.loading import recipe_to_dict
    from rearkit.recipe.tables import component_tables
    from rearkit.system.console import console
    from rearkit.system.devices import resolve_device
    from rearkit.training.deepspeed_check import check_deepspeed_table
    from rearkit.training.deepspeed_config import deepspeed_config

    # First, so that a recipe that can't be trained is an error before anything is printed.
    config = deepspeed_config(recipe.train, ranks)
    check_deepspeed_table(recipe.train, resolve_device(recipe.device))
    console.print(escape(tomli_w.dumps(recipe_to_dict(recipe))), end="")
    console.print()
    components = Table("kind", "name", "provided by", title="Components", title_justify="left")
    for table in component_tables(recipe):
        components.add_row(table.kind, table.name, table.provider)
    console.print(components)
    sizes = Table("what", "value", title="Sizes", title_justify="left")
    for name, value in recipe_sizes(recipe).items():
        sizes.add_row(name, value)
    console.print(sizes)
    console.print(f"\nDeepSpeed's configuration on {ranks} rank(s)")
    console.print(escape(json.dumps(config, indent=2)))
