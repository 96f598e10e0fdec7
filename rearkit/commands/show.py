"""``show``: what a recipe amounts to."""

from __future__ import annotations

from typing import Any

import click

from rearkit.commands.options import recipe_options


@click.command()
@recipe_options
@click.option(
    "--num-gpus", type=click.IntRange(1), default=1, show_default=True, help="Ranks to configure DeepSpeed for."
)
def show(recipe: Any, num_gpus: int) -> None:
    """Show RECIPE resolved: settings, providers, parameters, steps, epochs, DeepSpeed's configuration."""
    from rearkit.show import show_recipe

    show_recipe(recipe, num_gpus)
