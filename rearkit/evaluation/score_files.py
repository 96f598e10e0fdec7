"""Scores of any samples against a reference in the ADM layout, without any recipe."""

from __future__ import annotations

from pathlib import Path

from rearkit.evaluation.fidelity import read_reference
from rearkit.evaluation.image_folders import open_samples
from rearkit.evaluation.material import Material
from rearkit.evaluation.score_record import Scores
from rearkit.evaluation.scores import Scorer
from rearkit.sampling.manifest import read_manifest
from rearkit.system.hub import local_file


def evaluate_files(samples: str | Path, reference: str | Path, scorer: Scorer) -> Scores:
    """Score samples against a reference ``.npz``.

    Args:
        samples: an ``.npz`` with uint8 images (n, R, R, 3) in ``arr_0`` and, if present, their classes in ``arr_1``; or
            a folder or tar of image files.
        reference: with ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` and ``arr_0``, or some of them.
        scorer: in the feature space of `rearkit.evaluation.feature_spaces.space_of_file`, for example.

    Raises:
        RearkitError: a file can't be used, or the extractor's weights can't be had.
    """
    samples = local_file(samples)
    images = open_samples(samples)
    material = Material(
        samples=images,
        labels=images.labels(),
        manifest=read_manifest(samples),
        reference=read_reference(reference, "--reference"),
        copies=False,
    )
    return scorer.score(material)
