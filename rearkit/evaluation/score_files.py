"""Score one ``.npz`` against another, both in the ADM layout, without a recipe."""

from __future__ import annotations

from pathlib import Path

import attrs

from rearkit.evaluation.feature_spaces import space_of_file
from rearkit.evaluation.features import FeatureCache
from rearkit.evaluation.fidelity import read_reference, score
from rearkit.evaluation.image_streams import NpzImages
from rearkit.evaluation.sample_checks import Checked, warnings
from rearkit.evaluation.scores import Scores, extractor
from rearkit.sampling.manifest import read_manifest


def evaluate_files(
    samples: str | Path,
    reference: str | Path,
    feature_weights: str | None = None,
    batch: int = 64,
    nearest_k: int = 3,
    device: str = "auto",
    cache: FeatureCache | None = None,
) -> Scores:
    """Score an ``.npz`` of samples against a reference ``.npz``, both in the ADM layout, without a recipe.

    Args:
        samples: file with uint8 images (n, R, R, 3) in ``arr_0`` and, optionally, their classes in ``arr_1``.
        reference: file with ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` and ``arr_0``, or some of them.
        feature_weights: Inception weights for torch-fidelity, or a run's ``classifier.safetensors``; None to let
            torch-fidelity download the former.
        batch: images per batch.
        nearest_k: neighbours for precision and recall.
        device: ``auto``, ``cpu`` or ``cuda``.
        cache: where to keep features; None for the user's cache.

    Raises:
        RearkitError: a file can't be used, or the extractor's weights can't be had.
    """
    space = space_of_file(feature_weights)
    extract = extractor(space, batch, device, cache or FeatureCache.default())
    images, target = NpzImages.open(samples), read_reference(reference, "--reference")
    found = extract(images, "samples")
    against, real = target.resolve(lambda images: extract(images, "reference images"))
    fidelity, manifest = score(found, against, nearest_k), read_manifest(samples)
    checked = Checked(
        found, images.labels(), manifest, real, target.path, read_manifest(reference), fidelity, space.is_inception
    )
    return Scores(
        **attrs.asdict(fidelity),
        fid_floor=None,
        class_agreement=None,
        feature_space=space.description,
        classifier_accuracy=None,
        num_samples=len(found),
        num_held_out=0,
        reference=target.path.name,
        warnings=warnings(checked),
        manifest=manifest,
    )
