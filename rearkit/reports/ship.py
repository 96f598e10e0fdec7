"""``export``: a trained model with all that it needs in one folder, which can be given to anybody.

It holds nothing of the training machine: no photograph, no path, no account. Pictures are the model's own samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs
import numpy as np
import tomli_w

from rearkit.data.pixels import save_grid
from rearkit.errors import RearkitError
from rearkit.evaluation.score_record import Scores, score_lines
from rearkit.model import Model
from rearkit.recipe.cleaning import without_folders, without_places
from rearkit.recipe.exported import EXPORTED
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.recipe_files import MODEL
from rearkit.recipe.tables import Recipe
from rearkit.reports.model_card import Card
from rearkit.sampling.manifest import MEMBER, Manifest, read_manifest
from rearkit.sampling.sampler import Sampler, balanced_classes
from rearkit.stages.intact import check_written
from rearkit.stages.model_files import TOKENIZER, tokenizer_file
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import run_recipe
from rearkit.stages.sample import sample_manifest
from rearkit.stages.train import load_model
from rearkit.system.console import say
from rearkit.system.files import read_json, replacing, sha256, storage_errors, write_json, write_text
from rearkit.system.hub import is_hub
from rearkit.system.weight_files import read_state_dict
from rearkit.weights import read_metadata, write_state_dict

FILES = {
    MODEL: "the backbone's weights, with the recipe and the classes inside",
    TOKENIZER: "the tokenizer's weights",
    "recipe.toml": "the recipe, with every default",
    "classes.json": "the names of the classes, in order",
    "scores.json": "the scores, if any",
    MEMBER: "hashes of the weights, seeds, versions",
    "samples.png": "samples, a row for each class",
}
ROWS, COLUMNS = 10, 8


def export_run(run: Path, target: Path, licence: str | None = None) -> None:
    """Write the trained model of a run to a folder.

    Args:
        run: the run's folder.
        target: a new folder, or an empty one.
        licence: identifier of a licence for the model card.

    Raises:
        RearkitError: the run is not trained, its tokenizer has changed since, or the folder holds something.
    """
    folder = RunFolder(run)
    _check(folder, target)
    check_written(("tokenizer", "train", "sample", "evaluate"), folder)
    sampled = read_manifest(folder.samples)
    sampled = sampled if _is_of(folder, sampled) else None
    recipe = _clean_recipe(load_recipe(folder.model, trust=True), _sample_table(folder, sampled))  # our own file
    about = json.loads(read_metadata(folder.model)[EXPORTED])
    tokenizer = tokenizer_file(folder.model, recipe) or folder.tokenizer
    with storage_errors(target), replacing(target) as place:
        place.mkdir()
        about["recipe"] = recipe_to_dict(recipe)
        write_state_dict(place / TOKENIZER, read_state_dict(tokenizer))
        about["tokenizer"] = sha256(place / TOKENIZER)
        write_state_dict(place / MODEL, read_state_dict(folder.model), {EXPORTED: json.dumps(about)})
        write_text(place / "recipe.toml", tomli_w.dumps(recipe_to_dict(recipe)))
        model = load_model(place / MODEL, trust=True)  # our own, cleaned above
        write_json(place / "classes.json", list(model.classes.titles))
        manifest = _manifest(model, place)
        write_json(place / MEMBER, manifest)
        _picture(model, folder, place / "samples.png", sampled)
        scores = _scores(folder, recipe)
        if scores is not None:
            write_json(place / "scores.json", attrs.asdict(scores))
        files = {name: what for name, what in FILES.items() if (place / name).is_file()}
        lines = [] if scores is None else score_lines(scores)
        card = Card(model, recipe.name, int(about["steps"]), lines, manifest["versions"], files, licence)
        write_text(place / "README.md", card.text())
    say(f"{target}: {recipe.name}, {', '.join([*files, 'README.md'])}")
    say(f"next: python -m rearkit sample {target} --classes 0 --grid samples.png; hf upload USER/REPO {target}")


def _check(folder: RunFolder, target: Path) -> None:
    if folder.done("train") is None or not folder.model.is_file():
        raise RearkitError(f"{folder.path}: no run that is trained to its end; run: python -m rearkit train RECIPE")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RearkitError(f"{target}: not an empty folder; choose another, or remove it")


def _sample_table(folder: RunFolder, sampled: Manifest | None) -> Mapping[str, Any] | None:
    """Return ``[sample]`` as the run's samples were drawn or, without any, as it was last run.

    It may have changed since the training, whose weights have it as it was then.
    """
    if (told := _told_sample_table(sampled)) is not None:
        return told
    return recipe_to_dict(run_recipe(folder))["sample"] if folder.recipe.is_file() else None


def _told_sample_table(manifest: Manifest | None) -> Mapping[str, Any] | None:
    table: Mapping[str, Any] | None = (manifest or {}).get("recipe", {}).get("sample")
    return table


def _clean_recipe(recipe: Recipe, sample: Mapping[str, Any] | None) -> Recipe:
    """Return a recipe that tells nothing of the machine, finds the tokenizer beside it, and draws by ``sample``."""
    content = without_places(recipe_to_dict(recipe if sample is None else _drawing_by(recipe, sample)))
    tokenizer = content["tokenizer"]
    if tokenizer.get("weights") is not None and not is_hub(tokenizer["weights"]):
        tokenizer["weights"] = TOKENIZER
        # The file that is exported has one state dict.
        tokenizer.pop("weights_key", None)
    return load_recipe(content)


def _drawing_by(recipe: Recipe, sample: Mapping[str, Any]) -> Recipe:
    return load_recipe({**recipe_to_dict(recipe), "sample": dict(sample)})


def _manifest(model: Model, place: Path) -> Mapping[str, Any]:
    files = {"backbone": place / MODEL, "tokenizer": place / TOKENIZER}
    classes = balanced_classes(model.recipe.sample.num_images, model.num_classes)
    return {"kind": "model", **sample_manifest(model.recipe, files, classes, model.num_classes)}


def _scores(folder: RunFolder, recipe: Recipe) -> Scores | None:
    """Return the run's scores, if they are of its weights and of what is exported as ``[sample]``; without folders."""
    found = read_json(folder.scores)
    if found is None:
        return None
    manifest = found.get("manifest")
    other = None if _is_of(folder, manifest) else "weights"
    sample = _told_sample_table(manifest)
    if other is None and sample is not None and _drawing_by(recipe, sample) != recipe:
        other = "settings of [sample]"
    if other is not None:
        say(f"export: the scores are of other {other} than the run's, and left out; run evaluate, then export")
        return None
    scores = cattrs.structure({**found, "manifest": None}, Scores)
    told = [without_folders(text) for text in (scores.feature_space, scores.reference)]
    warnings = [without_folders(text) for text in scores.warnings]
    cleaned: Scores = attrs.evolve(scores, feature_space=told[0], reference=told[1], warnings=warnings)
    return cleaned


def _is_of(folder: RunFolder, manifest: Mapping[str, Any] | None) -> bool:
    """Return whether samples with this manifest are of the weights that the run has now."""
    told = (manifest or {}).get("weights", {})
    found = {"backbone": folder.model, "tokenizer": folder.tokenizer}
    return "backbone" in told and all(told.get(name) in (None, sha256(file)) for name, file in found.items())


def _picture(model: Model, folder: RunFolder, path: Path, sampled: Manifest | None) -> None:
    """Copy the run's picture of samples, or draw one."""
    if folder.sample_grid.is_file() and sampled is not None:
        with replacing(path) as temporary:
            temporary.write_bytes(folder.sample_grid.read_bytes())
        return
    labels = range(min(ROWS, model.num_classes))
    classes, numbers = zip(*((label, k) for label in labels for k in range(COLUMNS)), strict=True)
    parts = [part.images for part in Sampler(model).stream(classes, numbers=numbers)]
    save_grid(path, np.concatenate(parts), COLUMNS)
