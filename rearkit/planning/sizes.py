"""A recipe's sizes as text: parameters, tokens, steps, epochs."""

from __future__ import annotations

from rearkit.contracts import num_parameters
from rearkit.errors import RearkitError
from rearkit.model import build, build_dataset, build_tokenizer
from rearkit.recipe.tables import VIEWS, Recipe


def recipe_sizes(recipe: Recipe) -> dict[str, str]:
    """Return a recipe's numbers of parameters, tokens, steps and epochs, as text by name."""
    # Without the tokenizer's weights, which may not be fitted or downloaded yet: sizes depend on settings alone.
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
        # An epoch is a pass over the images, of which an augmentation's views are further copies.
        views = 1 if recipe.tokens.on_the_fly else VIEWS[recipe.tokens.augment]
        rows["epochs"] = f"{recipe.train.steps * recipe.train.global_batch / size:.1f} of {size:,} training images"
        rows["epochs"] += f", {views} views of each" if views > 1 else ""
    return rows


def train_size(recipe: Recipe) -> int | None:
    """Return the number of training images, or None if the dataset can't say without reading them."""
    try:
        return build_dataset(recipe).size("train")
    except RearkitError:
        # The dataset's files are absent. Sizes and plans must work before they are downloaded.
        return None
