"""Scores of one ``.npz`` against another, both in the ADM layout, without any recipe."""

from __future__ import annotations

from pathlib import Path

from rearkit.evaluation.fidelity import read_reference
from rearkit.evaluation.image_streams import NpzImages
from rearkit.evaluation.score_record import Scores
from rearkit.evaluation.scores import Material, Scorer
from rearkit.sampling.manifest import read_manifest


def evaluate_files(samples: str | Path, reference: str | Path, scorer: Scorer) -> Scores:
    """Score an ``.npz`` of samples against a reference ``.npz``.

    Args:
        samples: its ``arr_0`` are uint8 images (n, R, R, 3), and ``arr_1``, if present, their classes.
        reference: with ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` and ``arr_0``, or some of them.
        scorer: in the feature space of `rearkit.evaluation.feature_spaces.space_of_file`, for example.

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
    return scorer.score(material)
