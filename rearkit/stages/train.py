"""The stage ``train``: from token shards to trained weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from rearkit.contracts import Classes, ImageSize, Tokenizer, num_parameters
from rearkit.errors import RearkitError, RecipeError, WeightsError, first_line
from rearkit.model import Model, build
from rearkit.planning.machine import Machine
from rearkit.planning.micro_batch import with_micro_batch
from rearkit.planning.step_memory import GIB
from rearkit.recipe.exported import EXPORTED, read_about, without_source
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import Recipe
from rearkit.stages.data import run_classes
from rearkit.stages.intact import check_written, keys_of
from rearkit.stages.model_files import model_file, run_of, tokenizer_file
from rearkit.stages.resizing import resized, take_weights
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import keep_training_recipe
from rearkit.stages.stage import Outcome, Stage, hash_of
from rearkit.stages.tokenizer import fitted_tokenizer, load_tokenizer
from rearkit.stages.tokens import token_data, training_data
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import remove, sha256
from rearkit.system.hub import hub_records
from rearkit.training.checkpoints import CHECKPOINTS, Checkpoints
from rearkit.training.deepspeed_config import batch_layout
from rearkit.training.loop import train_checked
from rearkit.weights import load_weights, write_state_dict


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Train, then save the backbone and, in another file, the training-only heads."""
    distributed.from_main(lambda: keep_training_recipe(recipe, folder))
    classes = run_classes(folder)
    recipe = fitting(recipe, classes)
    model = build(recipe, fitted_tokenizer(recipe, folder), classes)
    data = training_data(recipe, folder, model.tokenizer)
    # The stage has just written its key; of all files, the checkpoints alone could be those of another recipe.
    (owner,) = keys_of(folder, "train")[:1] or ("",)
    result = train_checked(model, data, token_data(folder, "held-out"), folder.stage("train"), owner)
    say(f"train: {result.summary()}")
    # After training, all ranks have whole weights; one of them writes, and only its outcome is recorded.
    names: tuple[str, ...] = ()
    if distributed.rank() == 0:
        names = export(model, result.steps, folder)
        remove(folder.copies("train"))
    # Weights that changed course are no others' with this recipe, so the record says so.
    courses = folder.joins()
    told = {"courses": courses} if courses else {}
    return Outcome(attrs.asdict(result) | hub_records(recipe.backbone.weights) | told, names)


def fitting(recipe: Recipe, classes: Classes) -> Recipe:
    """Return a recipe with a micro-batch; one that names none gets, on a GPU, the largest that fits its memory.

    Args:
        recipe: what to train.
        classes: of the run, since the source of its images may be gone.

    Raises:
        RecipeError: not even one sample fits, or the global batch does not divide over the ranks.
    """
    device = distributed.local_device(resolve_device(recipe.device))
    if recipe.train.micro_batch is not None or device.type != "cuda" or not recipe.train.steps:
        return recipe
    memory = torch.cuda.get_device_properties(device).total_memory
    # By rank 0 for all, which may have GPUs of other kinds; the reserve is the plan's.
    machine = Machine(distributed.world_size(), float(memory), tflops=1.0, utilisation=1.0)
    source = without_source({"num_classes": classes.number})
    known = with_changes(recipe, data=with_changes(recipe.data, source=source))
    chosen, why = distributed.from_main(lambda: _estimated(known, machine))
    say(f"train: micro_batch = {chosen}, {why}; [train] can name another")
    return with_changes(recipe, train=with_changes(recipe.train, micro_batch=chosen))


def _estimated(recipe: Recipe, machine: Machine) -> tuple[int, str]:
    """Return the largest micro-batch that fits, or all of a rank's share if there is no estimate; and which it is."""
    share, _ = batch_layout(recipe.train, machine.ranks)
    try:
        chosen = with_micro_batch(recipe, machine).train.micro_batch or share
        return chosen, f"by the estimate of `plan` for {machine.memory / GIB:.0f} GiB"
    except RecipeError:
        raise
    # What cannot be planned can be trained.
    except RearkitError as error:
        return share, f"all that is a rank's, since its memory has no estimate ({first_line(error)})"


def export(model: Model, steps: int, folder: RunFolder) -> tuple[str, ...]:
    """Write a trained model's weights and its regularizers' heads to two files of a run; return the files' names.

    The files also hold what loading and sampling need: the recipe, the number and names of the classes, and which
    tokenizer it was trained with, if the run has one.
    """
    about = {"recipe": recipe_to_dict(model.recipe), "steps": steps, "classes": attrs.asdict(model.classes)}
    if folder.tokenizer.is_file():
        about["tokenizer"] = sha256(folder.tokenizer)
    # A single key, since safetensors writes several keys in an order that differs from run to run.
    metadata = {EXPORTED: json.dumps(about)}
    weights: dict[Path, nn.Module] = {folder.model: model.backbone}
    if num_parameters(model.objective):
        weights[folder.heads] = model.objective
    for path, module in weights.items():
        write_state_dict(path, module.state_dict(), metadata)
    return tuple(path.name for path in weights)


def trained_model(recipe: Recipe, folder: RunFolder) -> Model:
    """Build a recipe's model with the tokenizer and the weights of its run."""
    return _with_weights(recipe, fitted_tokenizer(recipe, folder), run_classes(folder), folder.model)


def load_model(
    path: str | Path, tokenizer: Tokenizer | None = None, trust: bool = False, image_size: ImageSize | None = None
) -> Model:
    """Load an exported model, ``RUN/train/model.safetensors``, which contains its recipe and its classes.

    Args:
        path: the file, the folder that ``export`` wrote, or the file's name on the hub (``hf://USER/REPO/FILE``).
        tokenizer: the tokenizer that it was trained with; if None, that of the run whose folder the file is in, the one
            beside the file, or the one whose weights the recipe names.
        trust: also take what the file's recipe names outside the file, such as weights on the hub and components of
            plugins that only training needs.
        image_size: another size than the one that it was trained at, a side in pixels or (height, width), where
            tokenizer and backbone allow it: tables of positions are interpolated in two dimensions, and a line says so.

    Raises:
        RecipeError: the file contains no recipe, or one that does not fit what is installed now.
        WeightsError: the tokenizer cannot be found or is another, weights are damaged, or cannot be changed to the
            size.
    """
    file = model_file(path)
    run = run_of(file)
    if file.absolute() == run.model:
        check_written(("train",) if tokenizer is not None else ("train", "tokenizer"), run)
    recipe = load_recipe(file, trust=trust)
    trained = getattr(recipe.tokenizer.settings, "image_size", 0)
    if image_size is not None:
        recipe = resized(recipe, image_size)
    if tokenizer is None and (saved := tokenizer_file(path, recipe)) is not None:
        tokenizer = load_tokenizer(recipe, saved)
    classes = _exported_classes(file, run)
    if image_size is None:
        return _with_weights(recipe, tokenizer, classes, file)
    return take_weights(build(_without_weights(recipe), tokenizer, classes), file, trained)


def _exported_classes(path: Path, folder: RunFolder) -> Classes | None:
    """Return the classes in an exported file; for files from before rearkit 0.2, those of the run it is in, if any."""
    about = read_about(path).get("classes")
    if about is None:
        return run_classes(folder) if folder.images.is_file() else None
    number, names = (about.get("number"), about.get("names")) if isinstance(about, dict) else (None, None)
    named = isinstance(names, list) and len(names) == number and all(isinstance(name, str) for name in names)
    if type(number) is not int or number < 1 or not (names is None or named):
        raise WeightsError(f"{path}: what it says of its classes is damaged; export the model again")
    return Classes(number, None if names is None else tuple(names))


def _with_weights(recipe: Recipe, tokenizer: Tokenizer | None, classes: Classes | None, path: Path) -> Model:
    model = build(_without_weights(recipe), tokenizer, classes)
    load_weights(model.backbone, path)
    model.backbone.eval()
    return model


def _without_weights(recipe: Recipe) -> Recipe:
    """Leave out the weights that training started from, which may be gone and would be overwritten anyway."""
    return with_changes(recipe, backbone=with_changes(recipe.backbone, weights=None))


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """Return the tables that trained weights depend on, and a hash of the weights that training starts from."""
    return {
        "backbone": recipe.backbone,
        "weights": hash_of(recipe.backbone.weights),
        "noise": recipe.noise,
        "regularizers": recipe.regularizers,
        "train": recipe.train,
        "seed": recipe.train_seed,
    }


def owns(folder: RunFolder, key: str) -> bool:
    """Return whether a checkpoint tells that it is of the training with this key."""
    return key in Checkpoints(folder.stage("train") / CHECKPOINTS, 1).owners()


USES = ("tokenizer", "backbone", "noise", "regularizer")
# Token shards are compared by `training_data`, which may do without some.
STAGE = Stage("train", ("tokenizer", "tokens"), tables, run, all_ranks=True, uses=USES, hashes="train-*.tar", owns=owns)
