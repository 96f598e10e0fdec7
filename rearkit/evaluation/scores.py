"""Score samples against real images; all results go into one record, `Scores`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch

from rearkit.contracts import Tokenizer
from rearkit.data.image_sets import ImageSet
from rearkit.errors import DataError
from rearkit.evaluation.classifier import FILE, Classifier, classify, find_classifier
from rearkit.evaluation.feature_spaces import FeatureSpace, classifier_space, inception_space
from rearkit.evaluation.features import FeatureCache, Features, extract
from rearkit.evaluation.fidelity import Fidelity, Reference, read_reference, score
from rearkit.evaluation.image_streams import Images, MemoryImages
from rearkit.evaluation.nearest import Nearest, find_copies
from rearkit.evaluation.reconstruction import Reconstruction, measure, reconstruction_lines
from rearkit.evaluation.sample_checks import Checked, warnings
from rearkit.recipe.tables import Recipe
from rearkit.sampling.manifest import Manifest, read_manifest
from rearkit.sampling.sampler import Samples
from rearkit.system.devices import resolve_device

Extract = Callable[[Images, str], Features]
"""Extracts the features of images; the text names the images in progress bars and messages."""


@attrs.frozen
class Scores:
    """What ``scores.json`` holds.

    Attributes:
        fid: of the samples against the reference, in ``feature_space``.
        inception_score: of the samples, from the same network's class predictions.
        precision: see `rearkit.evaluation.fidelity.Fidelity`; None if the reference has no images.
        recall: likewise.
        fid_floor: of held-out real images against the reference; None without held-out images.
        class_agreement: share of samples that the classifier assigns to the class asked for; None without classifier.
        feature_space: description of the feature space; only Inception scores compare with published ones.
        classifier_accuracy: of the classifier, on held-out images.
        num_samples: number of samples scored.
        num_held_out: number of held-out images for the floor; FID falls with more, so compare equal numbers.
        reference: what the samples were compared with.
        sfid: see `rearkit.evaluation.fidelity.Fidelity`; None if the reference has no spatial statistics.
        warnings: what is suspicious about the samples or the reference.
        manifest: what made the samples; None if they have no manifest.
        held_out: scores of held-out real images against the reference: what perfect samples would reach.
        nearest: distance of the samples to single real images; None if there are none to compare with.
        tokenizer: quality of the tokenizer's reconstructions; None without tokenizer.
    """

    fid: float
    inception_score: float
    precision: float | None
    recall: float | None
    fid_floor: float | None
    class_agreement: float | None
    feature_space: str
    classifier_accuracy: float | None
    num_samples: int
    num_held_out: int
    reference: str
    sfid: float | None = None
    warnings: list[str] = attrs.field(factory=list)
    manifest: Manifest | None = None
    held_out: Fidelity | None = None
    nearest: Nearest | None = None
    tokenizer: Reconstruction | None = None


@attrs.frozen(eq=False)
class Material:
    """The sets of images of an evaluation.

    Attributes:
        samples: to be scored.
        labels: classes of the samples (n,), or None.
        manifest: what made the samples, or None.
        train: training images, the reference unless the recipe names a file.
        held_out: real images for the floor, or None.
    """

    samples: Images
    labels: np.ndarray | None
    manifest: Manifest | None = None
    train: Images | None = None
    held_out: Images | None = None


def evaluate(
    recipe: Recipe,
    samples: Samples,
    train: ImageSet,
    held_out: ImageSet | None = None,
    folder: str | Path | None = None,
    manifest: Manifest | None = None,
    tokenizer: Tokenizer | None = None,
    picture: Path | None = None,
) -> Scores:
    """Score samples as the recipe's ``[evaluate]`` table says.

    Args:
        recipe: whose table, seed and device are used.
        samples: from `rearkit.sample`.
        train: training images: the reference, unless ``[evaluate] reference`` names one, and for a classifier.
        held_out: real images for the floor, and to test the classifier on.
        folder: folder to load the classifier from and save it to; None to keep none.
        manifest: what made the samples, if they are a run's.
        tokenizer: frozen, to be scored too.
        picture: file for a picture of samples and their nearest real images, or None.

    Raises:
        DataError: the classifier's accuracy is below ``min_accuracy``.
        RearkitError: the feature extractor's weights can't be had.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return evaluate(recipe, samples, train, held_out, temporary, manifest, tokenizer, picture)
    images = torch.from_numpy(np.ascontiguousarray(samples.images)).permute(0, 3, 1, 2)
    real = None if held_out is None else MemoryImages(held_out.images)
    material = Material(MemoryImages(images), samples.classes, manifest, MemoryImages(train.images), real)
    if recipe.evaluate.features == "inception":
        space = inception_space(recipe.evaluate.feature_weights)
        return score_material(recipe, material, space, picture, tokenizer)
    classifier, space, accuracy = judge(recipe, train, held_out, Path(folder))
    predicted = classify(classifier, images, recipe.evaluate.batch)
    agreement = (predicted == torch.from_numpy(samples.classes)).double().mean().item()
    found = score_material(recipe, material, space, picture, tokenizer)
    return attrs.evolve(found, class_agreement=agreement, classifier_accuracy=accuracy)


def score_material(
    recipe: Recipe,
    material: Material,
    space: FeatureSpace,
    picture: Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> Scores:
    """Score sets of images in a feature space, with the recipe's reference or the training images.

    Args:
        recipe: whose ``[evaluate]`` table and device are used.
        material: the sets.
        space: the feature space.
        picture: file for a picture of samples and their nearest real images, or None.
        tokenizer: frozen, to be scored too, on held-out images or, without any, on training images.
    """
    table = recipe.evaluate
    extract = extractor(space, table.batch, recipe.device)
    samples = extract(material.samples, "samples")
    path: Path | None = None
    found: Features | None = None
    real: Images | None
    if table.reference is not None:
        path = Path(table.reference)
        file = read_reference(path)
        reference, found = file.resolve(lambda images: extract(images, "reference images"))
        told, real, kind = path.name, file.images, f"the images of {path.name}"
    else:
        real, kind = material.train, "training images"
        assert real is not None
        found = extract(real, kind)
        reference, told = Reference.of(found), f"{len(found)} training images"
    fidelity = score(samples, reference, table.nearest_k)
    floor: Fidelity | None = None
    held_out: Features | None = None
    if material.held_out is not None and len(material.held_out) > table.nearest_k + 1:
        held_out = extract(material.held_out, "held-out images")
        floor = score(held_out, reference, table.nearest_k)
    copies = rebuilt = None
    if found is not None and real is not None:
        copies = find_copies(samples, found, held_out, kind, (material.samples, real), picture)
    whole = (material.held_out, held_out, "held-out")
    if held_out is None and path is None:
        whole = (material.train, found, "training")
    if tokenizer is not None and whole[0] is not None and whole[1] is not None:
        plain = extractor(space, table.batch, recipe.device, keep=False)
        rebuilt = measure(
            tokenizer, whole[0], whole[1], lambda images: plain(images, "decoded images"),
            resolve_device(recipe.device), whole[2],
        )  # fmt: skip
    checked = Checked(
        samples=samples,
        labels=material.labels,
        manifest=material.manifest,
        reference=found,
        reference_path=path,
        reference_manifest=None if path is None else read_manifest(path),
        fidelity=fidelity,
        published=space.is_inception,
    )
    return Scores(
        **attrs.asdict(fidelity),
        fid_floor=None if floor is None else floor.fid,
        class_agreement=None,
        feature_space=space.description,
        classifier_accuracy=None,
        num_samples=len(samples),
        num_held_out=0 if held_out is None else len(held_out),
        reference=told,
        warnings=warnings(checked),
        manifest=material.manifest,
        held_out=floor,
        nearest=copies,
        tokenizer=rebuilt,
    )


def score_lines(scores: Scores) -> list[str]:
    """Format the scores as lines of text."""
    lines = [f"FID {scores.fid:.2f} ({scores.num_samples} samples against {scores.reference})"]
    if scores.sfid is not None:
        lines.append(f"sFID {scores.sfid:.2f}")
    lines.append(f"Inception Score {scores.inception_score:.2f}")
    if scores.precision is not None and scores.recall is not None:
        lines[-1] += f", precision {scores.precision:.3f}, recall {scores.recall:.3f}"
    if scores.fid_floor is not None:
        lines.append(f"floor: FID {scores.fid_floor:.2f} ({scores.num_held_out} held-out real images, likewise)")
        if (real := scores.held_out) is not None and real.precision is not None and real.recall is not None:
            lines[-1] += f", precision {real.precision:.3f}, recall {real.recall:.3f}"
    if scores.class_agreement is not None and scores.classifier_accuracy is not None:
        lines.append(
            f"{scores.class_agreement:.1%} of the samples are classified as the class asked for "
            f"(the classifier is right on {scores.classifier_accuracy:.1%} of held-out images)"
        )
    if scores.nearest is not None:
        held_out = scores.nearest.held_out_distance
        beside = "" if held_out is None else f" (that of held-out images: {held_out:.3g})"
        lines.append(
            f"median distance to the nearest of {scores.nearest.among}: {scores.nearest.distance:.3g}{beside}; "
            f"{scores.nearest.identical} samples equal one of them"
        )
    if scores.tokenizer is not None:
        lines += [f"tokenizer: {line}" for line in reconstruction_lines(scores.tokenizer)]
    lines.append(f"feature space: {scores.feature_space}")
    return lines + [f"warning: {warning}" for warning in scores.warnings]


def extractor(
    space: FeatureSpace, batch: int, device: str, cache: FeatureCache | None = None, keep: bool = True
) -> Extract:
    """Return a function that extracts features; it keeps them on disk for Inception, whose weights never change.

    Args:
        space: the feature space.
        batch: images per batch.
        device: ``auto``, ``cpu`` or ``cuda``.
        cache: where to keep features; None for the user's cache, and then only for Inception.
        keep: False to keep no features in the user's cache.
    """
    place = resolve_device(device)
    if cache is None and space.is_inception and keep:
        cache = FeatureCache.default()
    if cache is None:
        return lambda images, label: extract(images, space, batch, place, label)
    return lambda images, label: cache.extract(images, space, batch, place, label)


def judge(
    recipe: Recipe, train: ImageSet, held_out: ImageSet | None, folder: Path
) -> tuple[Classifier, FeatureSpace, float | None]:
    """Find or train a classifier in a folder; return it, its feature space and its accuracy on held-out images.

    Raises:
        DataError: its accuracy is below ``min_accuracy``.
    """
    table, device = recipe.evaluate, resolve_device(recipe.device)
    classifier = find_classifier(folder, train.images, train.labels, table.classifier, recipe.seed, device)
    accuracy = None
    if held_out is not None and len(held_out):
        predicted = classify(classifier, held_out.images, table.batch)
        accuracy = (predicted == held_out.labels).double().mean().item()
        if accuracy < table.classifier.min_accuracy:
            raise DataError(
                f"[evaluate.classifier] min_accuracy = {table.classifier.min_accuracy}, but the classifier reaches "
                f"{accuracy:.3f} on held-out images; train it for more steps"
            )
    description = (
        f"{table.classifier.features} features of a classifier trained on this run's {len(train)} training images; "
        "not Inception, so not comparable with published scores"
    )
    return classifier, classifier_space(folder / FILE, description), accuracy
