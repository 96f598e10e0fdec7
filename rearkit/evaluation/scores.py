"""Scores samples against real images; all results go into one record, `Scores`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import numpy as np
import torch

from rearkit.contracts import Tokenizer
from rearkit.data.image_sets import ImageSet
from rearkit.evaluation.batch_rows import looking
from rearkit.evaluation.class_predictions import PERMUTATION_SEED
from rearkit.evaluation.classifier import FILE, Classifier, check_accuracy, classify, find_classifier
from rearkit.evaluation.feature_spaces import FeatureSpace, classifier_space, inception_space
from rearkit.evaluation.features import FeatureCache, Features, collect, extract
from rearkit.evaluation.fidelity import Fidelity, Reference, ReferenceFile, read_reference, score
from rearkit.evaluation.image_streams import Images, MemoryImages
from rearkit.evaluation.material import Material
from rearkit.evaluation.nearest import Nearest, find_copies
from rearkit.evaluation.reconstruction import Reconstruction, decoded_rows, measure
from rearkit.evaluation.sample_checks import Checked, warnings
from rearkit.evaluation.score_record import Scores
from rearkit.evaluation.shares import WHOLE, Rows, Share, ShareFiles
from rearkit.recipe.tables import Recipe
from rearkit.sampling.manifest import read_manifest
from rearkit.sampling.sampler import Samples
from rearkit.system import distributed
from rearkit.system.console import progress_bar
from rearkit.system.devices import resolve_device

DECODED = "decoded images"
Extract = Callable[[Images, str], Features]
"""Extracts the features of images; the string names the images in progress bars and messages."""


@attrs.frozen
class Scorer:
    """Scores sets of images in a feature space.

    Attributes:
        space: the feature space.
        batch: images per batch.
        nearest_k: neighbours for precision and recall.
        device: ``auto``, ``cpu`` or ``cuda``.
        cache: cache of features; None for the user's cache, with Inception's features only.
        shuffle: seed of a permutation of the samples, on which their Inception Score is computed; None for their order.
        files: what ranks have found of some sets of images, which is then not looked at again; or None.
    """

    space: FeatureSpace
    batch: int
    nearest_k: int
    device: str
    cache: FeatureCache | None = None
    shuffle: int | None = None
    files: ShareFiles | None = None

    @classmethod
    def of(cls, recipe: Recipe, space: FeatureSpace) -> Scorer:
        """Return a scorer with the settings of a recipe's ``[evaluate]`` table."""
        return cls(space, recipe.evaluate.batch, recipe.evaluate.nearest_k, recipe.device)

    def extract(self, images: Images, label: str, seed: int = PERMUTATION_SEED) -> Features:
        """Extract the features of images, or take those that are kept.

        Args:
            images: two or more.
            label: names them in the progress bar, and in the files that ranks have left.
            seed: of the permutation on which the Inception Score is computed too.
        """
        place, cache = self.place(), self.kept_in()

        def make() -> Features:
            if self.files is not None and self.files.has(label):
                return collect(self.files.read(label), len(images), place, seed)
            return extract(images, self.space, self.batch, place, label, seed)

        return make() if cache is None else cache.kept(images, self.space, label, make, seed)

    def place(self) -> torch.device:
        """Return this rank's device."""
        return distributed.local_device(resolve_device(self.device))

    def kept_in(self) -> FeatureCache | None:
        """Return the cache of features, if there is one."""
        # Inception's weights are always the same, while each run has a classifier of its own.
        return FeatureCache.default() if self.cache is None and self.space.is_inception else self.cache

    def rebuild(self, tokenizer: Tokenizer, images: Images, real: Features, what: str) -> Reconstruction:
        """Score a tokenizer on images whose features are known; ``what`` names the images."""
        # No other evaluation needs the features of decoded images, so they are not cached.
        if self.files is not None and self.files.has(DECODED):
            return measure(tokenizer, self.files.read(DECODED), real, self.place(), what)
        return measure(tokenizer, self.decoded(tokenizer, images), real, self.place(), what)

    def decoded(self, tokenizer: Tokenizer, images: Images, share: Share = WHOLE) -> Iterator[Rows]:
        """Encode and decode the images of a share and look at the results; see `decoded_rows`."""
        tokenizer.to(self.place())
        with (
            looking(self.space, self.place()) as look,
            progress_bar(f"evaluate: {DECODED}", len(images) // share.of) as bar,
        ):
            for rows in decoded_rows(tokenizer, images, look, self.batch, share):
                yield rows
                bar.advance(len(rows["psnr"]))

    def sets(self, material: Material) -> dict[str, Images]:
        """Return the sets of images whose features `score` needs, by their labels."""
        file, held_out = material.reference, material.held_out
        reference = {"training images": material.train} if file is None else {"reference images": file.images}
        # Precision and recall need more images than neighbours.
        enough = held_out is not None and len(held_out) > self.nearest_k + 1
        sets = {"samples": material.samples, **reference, "held-out images": held_out if enough else None}
        return {label: images for label, images in sets.items() if images is not None}

    def to_decode(self, material: Material) -> Images | None:
        """Return the images on which `score` scores the tokenizer, if it does."""
        sets = self.sets(material)
        return None if material.tokenizer is None else sets.get("held-out images", sets.get("training images"))

    def score(self, material: Material) -> Scores:
        """Score the samples and, if given, the held-out images and the tokenizer; look for copies of real images."""
        file = material.reference
        shuffled = self.shuffle is not None
        seed = PERMUTATION_SEED if self.shuffle is None else self.shuffle
        samples = self._placed(self.extract(material.samples, "samples", seed))
        real, kind, found, reference = self._reference(material)
        fidelity = score(samples, reference, self.nearest_k)
        if shuffled:
            fidelity = attrs.evolve(fidelity, inception_score=samples.permuted_score)
        held_out: Features | None = None
        floor: Fidelity | None = None
        if (unseen := self.sets(material).get("held-out images")) is not None:
            held_out = self._placed(self.extract(unseen, "held-out images"))
            floor = score(held_out, reference, self.nearest_k)
        told = f"{len(found or ())} {kind}" if file is None else file.path.name
        # A reference of statistics only has no images that could have been copied.
        copies: Nearest | None = None
        if material.copies and found is not None and real is not None:
            copies = find_copies(samples, found, held_out, kind, (material.samples, real), material.picture)
        rebuilt: Reconstruction | None = None
        known, what = (found, "training") if held_out is None else (held_out, "held-out")
        images = self.to_decode(material)
        if material.tokenizer is not None and images is not None and known is not None:
            rebuilt = self.rebuild(material.tokenizer, images, known, what)
        checked = Checked(
            samples=samples,
            labels=material.labels,
            manifest=material.manifest,
            reference=found,
            reference_path=None if file is None else file.path,
            reference_manifest=None if file is None else read_manifest(file.path),
            fidelity=fidelity,
            published=self.space.is_inception,
            shuffled=shuffled,
        )
        return Scores(
            **attrs.asdict(fidelity),
            fid_floor=None if floor is None else floor.fid,
            class_agreement=None,
            feature_space=self.space.description,
            classifier_accuracy=None,
            num_samples=len(samples),
            num_held_out=0 if held_out is None else len(held_out),
            reference=told,
            warnings=warnings(checked),
            manifest=material.manifest,
            held_out=floor,
            nearest=copies,
            tokenizer=rebuilt,
            shuffle=self.shuffle,
        )

    def _placed(self, found: Features) -> Features:
        """Put features on the device, where distances to others are then computed."""
        return attrs.evolve(found, features=found.features.to(self.place()))

    def _reference(self, material: Material) -> tuple[Images | None, str, Features | None, Reference]:
        """Return the reference's images, if there are any, their name, their features, and the statistics."""
        file = material.reference
        # A reference file may hold statistics only, without images or features.
        if file is not None:
            reference, found = file.resolve(lambda images: self.extract(images, "reference images"))
            return file.images, f"the images of {file.path.name}", found, reference
        assert material.train is not None, "without a reference file, the training images are the reference"
        found = self.extract(material.train, "training images")
        return material.train, "training images", found, Reference.of(found)


def evaluate(
    recipe: Recipe,
    samples: Samples,
    train: ImageSet,
    held_out: ImageSet | None = None,
    folder: str | Path | None = None,
    tokenizer: Tokenizer | None = None,
) -> Scores:
    """Score samples as the recipe's ``[evaluate]`` table says.

    Args:
        recipe: the recipe, whose table, seed and device are used.
        samples: from `rearkit.sample`.
        train: training images, for a classifier, and as the reference unless ``[evaluate] reference`` names one.
        held_out: real images, for the floor of the scores and for testing the classifier.
        folder: folder to load the classifier from and save it to; None to discard it.
        tokenizer: a frozen tokenizer to score too.

    Raises:
        DataError: the classifier's accuracy is below ``min_accuracy``.
        RearkitError: the weights of the feature extractor are not available.
    """
    images = torch.from_numpy(np.ascontiguousarray(samples.images)).permute(0, 3, 1, 2)
    material = Material(
        samples=MemoryImages(images),
        labels=samples.classes,
        reference=reference_of(recipe),
        train=MemoryImages(train.images),
        held_out=None if held_out is None else MemoryImages(held_out.images),
        tokenizer=tokenizer,
    )
    if recipe.evaluate.features == "inception":
        return Scorer.of(recipe, inception_space(recipe.evaluate.feature_weights)).score(material)
    # The classifier's feature space is read from its file, so without a folder it needs one for the time being.
    if folder is not None:
        return score_by_classifier(recipe, material, train, held_out, Path(folder))
    with tempfile.TemporaryDirectory() as temporary:
        return score_by_classifier(recipe, material, train, held_out, Path(temporary))


def reference_of(recipe: Recipe) -> ReferenceFile | None:
    """Open the reference file that a recipe names; return None if it names none."""
    return None if recipe.evaluate.reference is None else read_reference(recipe.evaluate.reference)


def score_by_classifier(
    recipe: Recipe,
    material: Material,
    train: ImageSet,
    held_out: ImageSet | None,
    folder: Path,
    files: ShareFiles | None = None,
) -> Scores:
    """Score in the feature space of the classifier in a folder, which also checks the samples' classes."""
    classifier, space, accuracy = judge(recipe, train, held_out, folder)
    predicted = torch.cat(
        [classify(classifier, part, recipe.evaluate.batch) for part in material.samples.batches(1024)]
    )
    agreement = (predicted == torch.from_numpy(material.labels)).double().mean().item()
    found = attrs.evolve(Scorer.of(recipe, space), files=files).score(material)
    return attrs.evolve(found, class_agreement=agreement, classifier_accuracy=accuracy)


def judge(
    recipe: Recipe, train: ImageSet, held_out: ImageSet | None, folder: Path
) -> tuple[Classifier, FeatureSpace, float | None]:
    """Load or train the classifier in a folder; return it, its feature space and its accuracy on held-out images.

    Raises:
        DataError: its accuracy is below ``min_accuracy``.
    """
    table = recipe.evaluate
    device = resolve_device(recipe.device)
    classifier = find_classifier(folder, train.images, train.labels, table.classifier, recipe.seed, device)
    accuracy = None
    if held_out is not None and len(held_out):
        predicted = classify(classifier, held_out.images, table.batch)
        accuracy = (predicted == held_out.labels).double().mean().item()
        check_accuracy(accuracy, table.classifier.min_accuracy)
    description = (
        f"{table.classifier.features} features of a classifier trained on this run's {len(train)} training images; "
        "not Inception, so not comparable with published scores"
    )
    return classifier, classifier_space(folder / FILE, description), accuracy
