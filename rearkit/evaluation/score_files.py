"""Score one ``.npz`` against another, both in the ADM layout, without a recipe."""

from __future__ import annotations

from pathlib import Path

from rearkit.evaluation.feature_spaces import space_of_file
from rearkit.evaluation.features import FeatureCache
from rearkit.evaluation.fidelity import read_reference
from rearkit.evaluation.image_streams import NpzImages
from rearkit.evaluation.score_record import Scores
from rearkit.evaluation.scores import Material, Scorer
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
    images = NpzImages.open(samples)
    material = Material(
        samples=images,
        labels=images.labels(),
        manifest=read_manifest(samples),
        reference=read_reference(reference, "--reference"),
        copies=False,
    )
    space = space_of_file(feature_weights)
    return Scorer(space, batch, nearest_k, device, cache or FeatureCache.default()).score(material)
