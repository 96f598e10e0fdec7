"""A model at another size than it was trained at: its recipe, its weights, and which sizes a run cannot have."""

from __future__ import annotations

from pathlib import Path

import attrs

from rearkit.contracts import ImageSize, height_width, is_square, size_argument, size_text
from rearkit.errors import RecipeError, WeightsError
from rearkit.model import Model
from rearkit.partial_weights import fitting_part
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import Recipe
from rearkit.registry.setting_types import takes_pairs
from rearkit.system.console import say
from rearkit.weights import listed


def resized(recipe: Recipe, size: ImageSize) -> Recipe:
    """Return a recipe whose tokenizer has another image size.

    Raises:
        WeightsError: the tokenizer does not take it.
    """
    name, settings = recipe.tokenizer.name, recipe.tokenizer.settings
    if not hasattr(settings, "image_size"):
        raise WeightsError(f"[tokenizer] {name} has no image_size, and so one size only")
    try:
        height, width = height_width(size)
        if height != width and not takes_pairs(type(settings), "image_size"):
            raise ValueError(f"has squares alone, and {height} × {width} pixels are none; give one number")
        changed = attrs.evolve(settings, image_size=height if height == width else (height, width))
    except ValueError as error:
        raise WeightsError(f"[tokenizer] {name}: {error}") from None
    return with_changes(recipe, tokenizer=with_changes(recipe.tokenizer, settings=changed))


def take_weights(model: Model, file: Path, trained: ImageSize) -> Model:
    """Load the weights of a model that was trained at another size, and say what is changed.

    Args:
        model: built at the size that is wanted.
        file: the exported model.
        trained: the size that it was trained at.

    Raises:
        WeightsError: the backbone has tensors that cannot be changed to the size.
    """
    part = fitting_part(model.backbone, str(file))
    size = model.tokenizer.image_size
    fresh = [name for name in model.backbone.state_dict() if name not in part.taken]
    if fresh:
        remedy = (
            f'train at that size instead, from these weights: [backbone] weights = "{file}", weights_fit = "partial"'
            if is_square(size)
            else "choose a size that it was trained at"
        )
        name = model.recipe.backbone.name
        raise WeightsError(f"{file}: {name} cannot take its {listed(fresh)} over to {size_text(size)} pixels; {remedy}")
    model.backbone.load_state_dict(part.taken)
    for line in part.told[1:]:
        say(f"sample: {size_text(size)} pixels: {line}")
    model.backbone.eval()
    shapes = [list(height_width(one)) for one in (trained, size)]
    if shapes[0] == shapes[1]:
        return model
    return attrs.evolve(model, resized={"trained": shapes[0], "drawn": shapes[1], "changed": part.told[1:]})


def only_sampled(recipe: Recipe) -> bool:
    """Return whether a recipe's images are no squares, so that a model can draw them, but a run have none."""
    size = getattr(recipe.tokenizer.settings, "image_size", 0)
    return isinstance(size, tuple) and not is_square(size)


def check_square(recipe: Recipe) -> None:
    """Check that a recipe's images are squares, as a run needs them.

    Raises:
        RecipeError: they are not.
    """
    if only_sampled(recipe):
        size = recipe.tokenizer.settings.image_size
        raise RecipeError(
            [
                f"{recipe.name}: [tokenizer] image_size: {size_text(size)} pixels are no square, and a run reads, "
                "trains on and scores squares alone; its model draws such images: "
                f"python -m rearkit sample RUN/train/model.safetensors --size {size_argument(size)}"
            ]
        )
