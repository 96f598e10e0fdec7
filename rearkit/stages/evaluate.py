"""The stage ``evaluate``: samples to ``scores.json``."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from torch import Tensor

from rearkit.contracts import SPLITS
from rearkit.data.image_sets import ImageSet
from rearkit.model import build_tokenizer
from rearkit.recipe.tables import Recipe
from rearkit.sampling.manifest import manifest_lines, read_manifest
from rearkit.stages.data import open_split
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage, hash_of
from rearkit.stages.tokenizer import fitted_tokenizer
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import write_json

if TYPE_CHECKING:
    from rearkit.evaluation.image_streams import StreamedImages
    from rearkit.evaluation.reconstruction import Reconstruction
    from rearkit.evaluation.score_record import Scores


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Score the run's samples."""
    # Here, since torch-fidelity takes seconds to import, and most commands do without it.
    from rearkit.evaluation.score_record import score_lines

    scores = _scores(recipe, folder)
    write_json(folder.scores, attrs.asdict(scores))
    told = ["no manifest in them"] if scores.manifest is None else manifest_lines(scores.manifest)
    for line in [*(f"samples: {line}" for line in told), *score_lines(scores)]:
        say(f"evaluate: {line}")
    outputs = (folder.scores.name,) if scores.nearest is None else (folder.scores.name, folder.nearest.name)
    return Outcome(attrs.asdict(scores), outputs)


def _scores(recipe: Recipe, folder: RunFolder) -> Scores:
    """Score the samples by the run's classifier, or in Inception's feature space."""
    from rearkit.evaluation.feature_spaces import inception_space
    from rearkit.evaluation.image_streams import MemoryImages, NpzImages
    from rearkit.evaluation.scores import Material, Scorer, reference_of, score_by_classifier

    samples = NpzImages.open(folder.samples)
    side = samples.shape[1]
    material = Material(
        samples=samples,
        labels=samples.labels(),
        manifest=read_manifest(folder.samples),
        reference=reference_of(recipe),
        tokenizer=fitted_tokenizer(recipe, folder),
        picture=folder.nearest,
    )
    # Inception's sets may be as large as ImageNet, so images are streamed; a classifier's are loaded into memory.
    if recipe.evaluate.features == "inception":
        train, held_out = (split_images(recipe, folder, split, side) for split in SPLITS)
        material = attrs.evolve(material, train=train, held_out=held_out if len(held_out) else None)
        return Scorer.of(recipe, inception_space(recipe.evaluate.feature_weights)).score(material)
    known, unseen = (_images(recipe, folder, split, side) for split in SPLITS)
    material = attrs.evolve(material, train=MemoryImages(known.images), held_out=MemoryImages(unseen.images))
    return score_by_classifier(recipe, material, known, unseen, folder.classifier)


def prepare_classifier(recipe: Recipe, folder: RunFolder) -> None:
    """Train the recipe's classifier, if it has one, before the stage does, so that several runs can share it."""
    from rearkit.evaluation.classifier import find_classifier

    if recipe.evaluate.features != "classifier":
        return
    size = build_tokenizer(recipe, load=False).image_size
    device = resolve_device(recipe.device)
    train = _images(recipe, folder, "train", size, folder.classifier.name)
    find_classifier(folder.classifier, train.images, train.labels, recipe.evaluate.classifier, recipe.seed, device)


def _images(recipe: Recipe, folder: RunFolder, split: str, size: int, stage: str = "evaluate") -> ImageSet:
    return open_split(recipe, folder, split, size, stage).all(recipe.evaluate.max_reference)


def score_tokenizer(recipe: Recipe, folder: RunFolder) -> Reconstruction:
    """Score only a run's tokenizer, on held-out images or, if there are none, on training images."""
    from rearkit.evaluation.feature_spaces import inception_space
    from rearkit.evaluation.scores import Scorer, judge

    tokenizer = fitted_tokenizer(recipe, folder)
    side = tokenizer.image_size
    splits = {split: split_images(recipe, folder, split, side) for split in SPLITS}
    chosen = SPLITS[1] if len(splits[SPLITS[1]]) else SPLITS[0]
    if recipe.evaluate.features == "inception":
        space = inception_space(recipe.evaluate.feature_weights)
    else:
        train, held_out = (_images(recipe, folder, split, side, "classifier") for split in SPLITS)
        _, space, _ = judge(recipe, train, held_out, folder.classifier)
    scorer = Scorer.of(recipe, space)
    real = scorer.extract(splits[chosen], f"{chosen} images")
    return scorer.rebuild(tokenizer, splits[chosen], real, chosen)


def split_images(recipe: Recipe, folder: RunFolder, split: str, side: int) -> StreamedImages:
    """Return the images of a run's split, ``max_reference`` at most; they are read from their shards when needed."""
    from rearkit.evaluation.image_streams import StreamedImages, in_batches

    limit = recipe.evaluate.max_reference
    images = open_split(recipe, folder, split, side, "evaluate")

    def stream(size: int) -> Iterator[Tensor]:
        return in_batches((image.image for image in itertools.islice(images.read(), limit)), size)

    count = images.count(limit)
    digest = (folder.done("data") or {}).get("digest")
    return StreamedImages(count, stream, hashlib.sha256(f"{digest} {split} {side} {limit}".encode()).hexdigest())


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """Return the tables and files that scores depend on."""
    files = (recipe.evaluate.feature_weights, recipe.evaluate.reference)
    return {"evaluate": recipe.evaluate, "files": [hash_of(file) for file in files], "seed": recipe.seed}


STAGE = Stage("evaluate", ("data", "tokenizer", "sample"), tables, run, uses=("tokenizer",))
