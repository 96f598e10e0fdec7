"""Writing a reference ``.npz`` in the ADM layout, which `rearkit.evaluation.fidelity.read_reference` reads."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rearkit.evaluation.features import Features
from rearkit.evaluation.image_streams import ARRAY, Images
from rearkit.evaluation.scores import Scorer
from rearkit.sampling.manifest import FORMAT, MEMBER, Manifest
from rearkit.system.files import replacing, sha256
from rearkit.system.npz_files import write_npy_member
from rearkit.system.versions import package_versions

STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


def make_reference(path: Path, images: Images, scorer: Scorer, label: str, about: Manifest | None = None) -> Features:
    """Extract the features of images and write a reference: statistics in float64, and the images themselves.

    Args:
        path: the file to write.
        images: two or more; read twice, a batch at a time.
        scorer: extracts the features.
        label: what the images are, for the progress bar.
        about: further entries of the manifest, such as the recipe that names their dataset.

    Raises:
        RearkitError: the images can't be read, or the extractor's weights can't be had.
    """
    found = scorer.extract(images, label)
    weights = scorer.space.weights
    manifest = {
        "format": FORMAT,
        "num_images": len(found),
        "feature_space": scorer.space.description,
        "weights": {} if weights is None else {"features": sha256(Path(weights))},
        "versions": package_versions(),
        **(about or {}),
    }
    write_reference(path, images, found, manifest)
    return found


def write_reference(path: Path, images: Images, found: Features, manifest: Manifest) -> None:
    """Write ``arr_0`` (n, R, R, 3) uint8, ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` and the manifest, atomically."""

    def rows() -> Iterator[np.ndarray]:
        for part in images.batches(64):
            yield np.ascontiguousarray(part.permute(0, 2, 3, 1).numpy())

    arrays = (found.gaussian.mu, found.gaussian.sigma, found.spatial.mu, found.spatial.sigma)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        # Statistics first: readers that want no images then find them at the beginning of a large file.
        for name, array in zip(STATISTICS, arrays, strict=True):
            write_npy_member(archive, name, len(array), iter([array]))
        # As many as had features: damaged ones of a run's shards are skipped, although they were announced.
        write_npy_member(archive, ARRAY, len(found), rows())
        archive.writestr(zipfile.ZipInfo(MEMBER), json.dumps(manifest, indent=2))
