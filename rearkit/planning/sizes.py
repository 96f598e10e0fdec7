"""What a recipe amounts to, as text for people."""

from __future__ import annotations

from rearkit.contracts import num_parameters
from rearkit.errors import RearkitError
from rearkit.model import build, build_dataset, build_tokenizer
from rearkit.recipe.tables import VIEWS, Recipe


def recipe_sizes(recipe: Recipe) -> dict[str, str]:
    """Count a recipe's parameters, tokens, steps and epochs, as text for people."""
    model = build(recipe, build_tokenizer(recipe, load=False))
    heads = num_parameters(model.objective)
    rows = {
        "tokenizer parameters": f"{num_parameters(model.tokenizer):,}",
        "tokens an image": f"{model.space.num_tokens} of {model.space.codebook_size} codes",
        "backbone parameters": f"{num_parameters(model.backbone):,}",
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
