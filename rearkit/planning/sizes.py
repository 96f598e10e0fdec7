"""A recipe's sizes as text: parameters, tokens, steps, epochs."""

from __future__ import annotations

from pathlib import Path

from rearkit.contracts import Tokenizer, grid_of, is_square, num_parameters, size_text
from rearkit.data.shard_lists import tars_in
from rearkit.data.token_shards import TokenData
from rearkit.errors import DataError, RearkitError
from rearkit.model import build, build_dataset, build_tokenizer, outline
from rearkit.recipe.tables import VIEWS, Recipe, TokensTable


def recipe_sizes(recipe: Recipe) -> dict[str, str]:
    """Return a recipe's numbers of parameters, tokens, steps and epochs, as text by name."""
    # Without the tokenizer's weights, which may not be fitted or downloaded yet: sizes depend on settings alone.
    model = outline(recipe) or build(recipe, build_tokenizer(recipe, load=False))
    heads = num_parameters(model.objective, trained=True)
    frozen = num_parameters(model.objective, trained=False)
    rows = {
        "tokenizer parameters": f"{num_parameters(model.tokenizer):,}",
        **image_rows(model.tokenizer),
        "backbone parameters": f"{num_parameters(model.backbone):,}",
        "training-only head parameters": f"{heads:,}" if heads else "none",
        **({"frozen copies' parameters": f"{frozen:,}"} if frozen else {}),
    }
    # What stands below is of a training, which only squares have.
    if not is_square(model.tokenizer.image_size):
        return rows
    rows |= {
        "steps": f"{recipe.train.steps:,} of {recipe.train.global_batch:,} samples",
        "image tokens seen": f"{recipe.train.steps * recipe.train.global_batch * model.space.num_tokens:,}",
    }
    size = train_size(recipe)
    if recipe.tokens.pretokenized is not None:
        rows["training views"] = _pretokenized(Path(recipe.tokens.pretokenized), size)
    if size is not None:
        # An epoch is a pass over the images, of which an augmentation's views are further copies.
        views = views_made(recipe.tokens)
        rows["epochs"] = f"{recipe.train.steps * recipe.train.global_batch / size:.1f} of {size:,} training images"
        rows["epochs"] += f", {views} views of each" if views > 1 else ""
    return rows


def image_rows(tokenizer: Tokenizer) -> dict[str, str]:
    """Return how many tokens an image has, as text by name; of images that are no squares also their size."""
    tokens = f"{tokenizer.num_tokens} of {tokenizer.codebook_size} codes"
    if is_square(tokenizer.image_size):
        return {"tokens an image": tokens}
    rows, columns = grid_of(tokenizer) or (1, tokenizer.num_tokens)
    return {
        "images": f"{size_text(tokenizer.image_size)} pixels (height × width), for sampling: only squares are trained",
        "tokens an image": f"{tokens}, in {rows} rows of {columns}",
    }


def views_made(table: TokensTable) -> int:
    """Return how many views of each training image the tokens stage writes."""
    # On the fly none are written, and shards made elsewhere have the views that they have, whatever `augment` says.
    return 0 if table.on_the_fly or table.pretokenized is not None else VIEWS[table.augment]


def _pretokenized(folder: Path, images: int | None) -> str:
    """Say how many views token shards made elsewhere have, of a number of training images."""
    paths = tars_in(folder)
    if not paths:
        return f"no token shards in {folder} yet"
    try:
        views = len(TokenData.from_shards(paths))
    except DataError as error:
        return str(error)
    return f"{views:,} in {folder}" + (f", {views / images:.4g} of each training image" if images else "")


def train_size(recipe: Recipe) -> int | None:
    """Return the number of training images, or None if the dataset can't say without reading them."""
    try:
        return build_dataset(recipe).size("train")
    except RearkitError:
        # The dataset's files are absent. Sizes and plans must work before they are downloaded.
        return None
