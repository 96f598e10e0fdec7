"""What ``show`` and ``plugins`` print."""

from __future__ import annotations

import json
from typing import Any

import attrs
import tomli_w
from rich.markup import escape
from rich.table import Table

from rearkit.contracts import as_module, num_parameters
from rearkit.errors import RearkitError
from rearkit.model import build, build_dataset, build_tokenizer
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import VIEWS, Recipe
from rearkit.registry.plugins import load_plugins
from rearkit.system.console import console
from rearkit.system.devices import resolve_device
from rearkit.training.config import check_deepspeed_table, deepspeed_config


def show_recipe(recipe: Recipe, ranks: int = 1) -> None:
    """Print a recipe with every default, who provides its components, what they amount to, and DeepSpeed's part.

    Raises:
        RecipeError: its batches don't divide over so many ranks, or DeepSpeed would refuse its configuration.
    """
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


def component_tables(recipe: Recipe) -> list[Any]:
    """Return the tables of a recipe that name components."""
    tables = [recipe.data.source, recipe.tokenizer, recipe.backbone, recipe.noise, *recipe.regularizers]
    return [table for table in tables if table is not None]


def recipe_sizes(recipe: Recipe) -> dict[str, str]:
    """Count a recipe's parameters, tokens, steps and epochs, as text for people."""
    model = build(recipe, build_tokenizer(recipe, load=False))
    heads = num_parameters(model.objective)
    rows = {
        "tokenizer parameters": f"{num_parameters(as_module(model.tokenizer)):,}",
        "tokens an image": f"{model.space.num_tokens} of {model.space.codebook_size} codes",
        "backbone parameters": f"{num_parameters(as_module(model.backbone)):,}",
        "training-only head parameters": f"{heads:,}" if heads else "none",
        "steps": f"{recipe.train.steps:,} of {recipe.train.global_batch:,} samples",
        "image tokens seen": f"{recipe.train.steps * recipe.train.global_batch * model.space.num_tokens:,}",
    }
    if (size := train_size(recipe)) is not None:
        views = 1 if recipe.tokens.on_the_fly else VIEWS[recipe.tokens.augment]
        rows["epochs"] = f"{recipe.train.steps * recipe.train.global_batch / size:.1f} of {size:,} training images"
        rows["epochs"] += f", {views} views of each" if views > 1 else ""
    return rows


def train_size(recipe: Recipe) -> int | None:
    """Number of training images, where the dataset can tell without reading them."""
    try:
        return build_dataset(recipe).size("train")
    except RearkitError:  # its files are absent
        return None


def show_plugins() -> None:
    """Print every component, its provider, and its settings with defaults; then what failed to load."""
    plugins = load_plugins()
    for component in plugins.registry.all():
        console.print(f"[bold]{component.kind} {component.name}[/bold]  [dim]{escape(component.provider)}[/dim]")
        console.print(f"  {escape(component.summary)}")
        table = Table("setting", "default", "meaning", box=None, padding=(0, 2), show_header=False)
        for field in attrs.fields(component.settings):
            default = "required" if field.default is attrs.NOTHING else _default(field.default)
            table.add_row(f"  {field.name}", default, escape(field.metadata.get("doc", "")))
        if table.row_count:
            console.print(table)
        console.print()
    for plugin in plugins.broken:
        console.print(f"[red]failed to load:[/red] {escape(plugin.provider)}: {escape(plugin.reason)}")


def _default(value: Any) -> str:
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        return ""
    return escape(str(value).lower() if isinstance(value, bool) else str(value))
