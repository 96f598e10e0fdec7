"""The stage ``train``: token shards to trained weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from rearkit.contracts import Tokenizer, as_module, num_parameters
from rearkit.errors import WeightsError
from rearkit.model import Model, build
from rearkit.recipe.loading import EXPORTED, load_recipe, recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage
from rearkit.stages.tokenizer import WEIGHTS as TOKENIZER
from rearkit.stages.tokenizer import fitted_tokenizer
from rearkit.stages.tokens import COPIES, token_data, training_data
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.files import remove, sha256
from rearkit.training.loop import train
from rearkit.weights import load_weights, write_state_dict

MODEL = "model.safetensors"
HEADS = "heads.safetensors"


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Train, and save the backbone and, apart, the training-only heads."""
    place = folder.stage("train")
    model = build(recipe, fitted_tokenizer(recipe, folder))
    data = training_data(recipe, folder, model.tokenizer)
    result = train(model, data, token_data(folder, "held-out"), place)
    say(f"train: {result.summary()}")
    names: tuple[str, ...] = ()
    if distributed.rank() == 0:
        names = export(model, result.steps, place)
        remove(place / COPIES)
    return Outcome(attrs.asdict(result), names)


def export(model: Model, steps: int, place: Path) -> tuple[str, ...]:
    """Write a trained model's weights, and its regularizers' heads apart, into a folder; return the files' names."""
    # A single key, since safetensors writes several in an order that differs from run to run.
    metadata = {EXPORTED: json.dumps({"recipe": recipe_to_dict(model.recipe), "steps": steps})}
    weights = {MODEL: as_module(model.backbone)}
    if num_parameters(model.objective):
        weights[HEADS] = model.objective
    for name, module in weights.items():
        write_state_dict(place / name, module.state_dict(), metadata)
    return tuple(weights)


def trained_model(recipe: Recipe, folder: RunFolder) -> Model:
    """Build a recipe's model with the tokenizer and the weights that its run has."""
    return _with_weights(recipe, fitted_tokenizer(recipe, folder), folder.stage("train") / MODEL)


def load_model(path: str | Path, tokenizer: Tokenizer | None = None) -> Model:
    """Load an exported model, ``RUN/train/model.safetensors``, which has its recipe inside.

    Args:
        path: the file.
        tokenizer: the tokenizer that it was trained with; left out, that of the run whose folder the file lies in, or
            the one whose weights the recipe names.

    Raises:
        RecipeError: the file has no recipe inside, or it no longer fits what is installed.
        WeightsError: the tokenizer is not to be found, or weights are damaged.
    """
    path = Path(path)
    recipe = load_recipe(path)
    folder = RunFolder(path.absolute().parent.parent)
    if tokenizer is None and (folder.stage("tokenizer") / TOKENIZER).is_file():
        tokenizer = fitted_tokenizer(recipe, folder)
    if tokenizer is None and recipe.tokenizer.weights is None:
        raise WeightsError(
            f"{path}: its tokenizer was fitted in a run, and is not in {folder.stage('tokenizer') / TOKENIZER}; "
            "give load_model the tokenizer"
        )
    return _with_weights(recipe, tokenizer, path)


def _with_weights(recipe: Recipe, tokenizer: Tokenizer | None, path: Path) -> Model:
    untrained: Recipe = attrs.evolve(recipe, backbone=attrs.evolve(recipe.backbone, weights=None))  # type: ignore[misc]
    model = build(untrained, tokenizer)
    load_weights(as_module(model.backbone), path)
    as_module(model.backbone).eval()
    return model


def tables(recipe: Recipe) -> Mapping[str, Any]:
    """The tables that trained weights depend on, and the weights that training starts from."""
    weights = recipe.backbone.weights
    return {
        "backbone": recipe.backbone,
        "weights": sha256(Path(weights)) if weights is not None and Path(weights).is_file() else None,
        "noise": recipe.noise,
        "regularizers": recipe.regularizers,
        "train": recipe.train,
        "seed": recipe.train_seed,
    }


STAGE = Stage("train", ("tokenizer", "tokens"), tables, run, all_ranks=True)
