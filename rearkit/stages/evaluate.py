"""The stage ``evaluate``: samples to ``scores.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from torch import Tensor

from rearkit.contracts import SPLITS, height_width, square_side
from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_sets import ImageSet, Split
from rearkit.evaluation.classifier import LEAST_SIDE, check_accuracy
from rearkit.evaluation.inception_weights import check_inception_weights
from rearkit.layers.shapes_only import cheaply
from rearkit.model import build_tokenizer
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.sampling.manifest import manifest_lines, read_manifest
from rearkit.stages.data import keep_counts, open_split
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage, hash_of
from rearkit.stages.tokenizer import fitted_tokenizer
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import write_json
from rearkit.system.hub import hub_records
from rearkit.system.ranks import is_main_process

if TYPE_CHECKING:
    from rearkit.evaluation.gaussians import Gaussian
    from rearkit.evaluation.image_streams import StreamedImages
    from rearkit.evaluation.reconstruction import Reconstruction
    from rearkit.evaluation.score_record import Scores
    from rearkit.evaluation.scores import Scorer

# Images of a split that a rank reads in one go, about: so many that opening a shard for them counts little.
STRETCH = 1024


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Score the run's samples, on all ranks."""
    scores = _scores(recipe, folder)
    return distributed.from_main(lambda: _record(recipe, folder, scores))


def _record(recipe: Recipe, folder: RunFolder, scores: Scores) -> Outcome:
    """Write the scores, and say what they are."""
    # Here, since torch-fidelity takes seconds to import, and most commands do without it.
    from rearkit.evaluation.score_record import score_lines

    write_json(folder.scores, attrs.asdict(scores))
    told = ["no manifest in them"] if scores.manifest is None else manifest_lines(scores.manifest)
    for line in [*(f"samples: {line}" for line in told), *score_lines(scores)]:
        say(f"evaluate: {line}")
    outputs = (folder.scores.name,) if scores.nearest is None else (folder.scores.name, folder.nearest.name)
    used = hub_records(recipe.evaluate.feature_weights, recipe.evaluate.reference)
    return Outcome(attrs.asdict(scores) | used, outputs)


def _scores(recipe: Recipe, folder: RunFolder) -> Scores:
    """Score the samples by the run's classifier, or in Inception's feature space."""
    from rearkit.evaluation.feature_spaces import inception_space
    from rearkit.evaluation.image_streams import MemoryImages, NpzImages
    from rearkit.evaluation.material import Material
    from rearkit.evaluation.score_on_ranks import score_by_classifier_on_ranks, score_on_ranks
    from rearkit.evaluation.scores import Scorer, reference_of

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
        budgets: list[BadSamples] = []
        held_out = split_images(recipe, folder, SPLITS[1], side, budgets)
        # With a reference, nothing asks for the training images; to count remote ones, they would be fetched.
        known = None if material.reference is not None else split_images(recipe, folder, SPLITS[0], side, budgets)
        material = attrs.evolve(material, train=known, held_out=held_out if len(held_out) else None)
        scorer = Scorer.of(recipe, inception_space(recipe.evaluate.feature_weights))
        scores = score_on_ranks(scorer, material, folder.shares)
        _judge(budgets)
        return scores
    train, unseen = (_images(recipe, folder, split, side) for split in SPLITS)
    material = attrs.evolve(material, train=MemoryImages(train.images), held_out=MemoryImages(unseen.images))
    return score_by_classifier_on_ranks(recipe, material, train, unseen, folder.classifier, folder.shares)


def prepare_classifier(recipe: Recipe, folder: RunFolder) -> None:
    """Train the recipe's classifier, if it has one, before the stage does, so that several runs can share it."""
    from rearkit.evaluation.classifier import find_classifier

    if recipe.evaluate.features != "classifier":
        return
    size = square_side(build_tokenizer(recipe, load=False))
    device = resolve_device(recipe.device)
    train = _images(recipe, folder, "train", size, folder.classifier.name)
    find_classifier(folder.classifier, train.images, train.labels, recipe.evaluate.classifier, recipe.seed, device)


def _images(recipe: Recipe, folder: RunFolder, split: str, size: int, stage: str = "evaluate") -> ImageSet:
    images = open_split(recipe, folder, split, size, stage)
    # All ranks read all images, and skip the same.
    return attrs.evolve(images, log=images.log if is_main_process() else None).all(recipe.evaluate.max_reference)


def score_tokenizer(recipe: Recipe, folder: RunFolder) -> Reconstruction:
    """Score only a run's tokenizer, on held-out images or, if there are none, on training images."""
    tokenizer = fitted_tokenizer(recipe, folder)
    side = square_side(tokenizer)
    chosen, images = SPLITS[1], split_images(recipe, folder, SPLITS[1], side)
    if not len(images):
        chosen, images = SPLITS[0], split_images(recipe, folder, SPLITS[0], side)
    scorer = _scorer(recipe, folder)
    real = scorer.extract(images, f"{chosen} images")
    return scorer.rebuild(tokenizer, images, real, chosen)


def features_and_reference(recipe: Recipe, folder: RunFolder, kept: Path | None = None) -> tuple[np.ndarray, Gaussian]:
    """Return the features (n, F) float32 of a run's samples, and the distribution that its FID compares them with.

    Features of the reference are kept in the folder `kept`, if it is given, for other runs with the same.
    """
    from rearkit.evaluation.features import FeatureCache
    from rearkit.evaluation.image_streams import NpzImages
    from rearkit.evaluation.scores import reference_of

    scorer = _scorer(recipe, folder)
    samples = NpzImages.open(folder.samples)
    found = scorer.extract(samples, "samples").features.cpu().numpy()
    # Inception's features of a reference are in the user's cache already, from the evaluation.
    if kept is not None and scorer.kept_in() is None:
        scorer = attrs.evolve(scorer, cache=FeatureCache(kept))
    if (file := reference_of(recipe)) is not None:
        return found, file.resolve(lambda images: scorer.extract(images, "reference images"))[0].gaussian
    train = split_images(recipe, folder, SPLITS[0], samples.shape[1])
    return found, scorer.extract(train, "training images").gaussian


def training_reference(recipe: Recipe, folder: RunFolder, target: Path) -> int:
    """Write a reference ``.npz`` of a run's training images, ``max_reference`` at most; return their number."""
    from rearkit.evaluation.reference_files import make_reference

    scorer = _scorer(recipe, folder)
    side = square_side(build_tokenizer(recipe, load=False))
    images = split_images(recipe, folder, SPLITS[0], side)
    # As in a manifest of samples, so that `evaluate` notices samples of another dataset.
    about = {"recipe": {"name": recipe.name, "data": recipe_to_dict(recipe)["data"]}}
    return len(make_reference(target, images, scorer, "training images", about))


def _scorer(recipe: Recipe, folder: RunFolder) -> Scorer:
    """Return what extracts features in a run's feature space; its classifier is trained if need be."""
    from rearkit.evaluation.feature_spaces import inception_space
    from rearkit.evaluation.scores import Scorer, judge

    if recipe.evaluate.features == "inception":
        return Scorer.of(recipe, inception_space(recipe.evaluate.feature_weights))
    side = square_side(build_tokenizer(recipe, load=False))
    train, held_out = (_images(recipe, folder, split, side, "classifier") for split in SPLITS)
    return Scorer.of(recipe, judge(recipe, train, held_out, folder.classifier)[1])


def split_images(
    recipe: Recipe, folder: RunFolder, split: str, side: int, budgets: list[BadSamples] | None = None
) -> StreamedImages:
    """Return the images of a run's split, ``max_reference`` at most; they are read from their shards when needed.

    What is skipped of a share goes to ``budgets`` when it is read, for `_judge` to compare all shares with the limit.
    """
    from rearkit.evaluation.image_streams import StreamedImages, in_batches
    from rearkit.evaluation.shares import Share

    limit = recipe.evaluate.max_reference

    def opened() -> tuple[Split, Split]:
        whole = open_split(recipe, folder, split, side, "evaluate")
        return whole, whole.part(limit)

    def counted() -> int:
        whole, images = opened()
        count = images.count()
        keep_counts(folder, whole)
        return count

    # First by one rank, which fetches remote shards that nobody has counted.
    count = distributed.from_main(counted)
    whole, images = opened()

    def stream(size: int, share: Share) -> Iterator[Tensor]:
        bad = images.budget()
        # Batches begin anew with each stretch: which ones there are must not depend on what others had to skip.
        for stretch in share.among(images.stretches(size * max(1, STRETCH // size))):
            yield from in_batches((image.image for image in stretch.read(bad=bad)), size)
        if share.of > 1 and budgets is not None:
            budgets.append(bad)

    digest = (folder.done("data") or {}).get("digest")
    # The first ``limit`` images, in earlier versions: their features would be found under the same hash.
    which = limit if images is whole else f"{limit} drawn"
    return StreamedImages(count, stream, hashlib.sha256(f"{digest} {split} {side} {which}".encode()).hexdigest())


def _judge(budgets: list[BadSamples]) -> None:
    """Count what all ranks had to skip of their shares.

    Raises:
        DataError: it is more than the recipe allows; on all ranks.
    """
    for mine in budgets:
        total = BadSamples(mine.max_share, mine.expected, mine.log)
        for reasons, good in distributed.from_all((mine.reasons, mine.good)):
            total.hear(reasons, good)
        total.judge("images to score with")


def check_features(recipe: Recipe) -> list[str]:
    """Return what keeps a recipe's feature space from being had: foreign weights, images too small for a classifier."""
    if recipe.evaluate.features != "classifier":
        return check_inception_weights(recipe.evaluate)
    tokenizer = cheaply(lambda: build_tokenizer(recipe, load=False))
    side = min(height_width(tokenizer.image_size))
    told = f"needs images of {LEAST_SIDE} pixels at least, and the tokenizer's have {side}"
    return [f'[evaluate] features = "classifier" {told}'] if side < LEAST_SIDE else []


def judge(recipe: Recipe, folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Compare the accuracy of the classifier that scored with the recipe's floor; see `check_accuracy`."""
    if (accuracy := result.get("classifier_accuracy")) is not None:
        check_accuracy(accuracy, recipe.evaluate.classifier.min_accuracy)


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """Return the tables and files that scores depend on."""
    files = (recipe.evaluate.feature_weights, recipe.evaluate.reference)
    return {"evaluate": recipe.evaluate, "files": [hash_of(file) for file in files], "seed": recipe.seed}


INPUTS = ("data", "tokenizer", "sample")
STAGE = Stage("evaluate", INPUTS, tables, run, all_ranks=True, uses=("tokenizer",), judge=judge)
