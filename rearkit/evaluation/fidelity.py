"""FID, sFID, Inception Score, precision and recall: formulas by torch-fidelity, protocol of ADM's evaluator.

As in ADM's ``evaluator.py`` (openai/guided-diffusion): statistics ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` of the
reference are used as they are; precision and recall compare with its images ``arr_0``, with 3 neighbours; the Inception
Score is the mean over splits of 5,000 in the order of the samples; sFID uses the first seven channels of
``mixed_6/conv``. Differences: features come from torch-fidelity's port of the network; the trace of the matrix root
comes from eigenvalues instead of ``sqrtm``; distances are in float32, where ADM's are in float16 unless one overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from rearkit.errors import RearkitError
from rearkit.evaluation.features import Features
from rearkit.evaluation.gaussians import Gaussian
from rearkit.evaluation.image_streams import ARRAY, Images, NpzImages
from rearkit.system.hub import local_file
from rearkit.system.npz_files import DAMAGE, check_npz

FULL_SET = 50_000  # number of samples that published scores are computed from
# How far below 0 rounding may take a distance, as a share of the variances.
ROUNDING = 1e-3
# Distances in memory at once, for precision, recall and nearest neighbours: 64 MiB in float32.
BLOCK = 2**24


@attrs.frozen
class Fidelity:
    """Scores of a set of images against a reference set.

    Attributes:
        fid: Fréchet distance of the feature distributions (Heusel et al. 2017).
        sfid: the same for spatial features (Nash et al. 2021); None if the reference has no statistics of them.
        inception_score: exponential of the mean divergence of the class predictions (Salimans et al. 2016).
        precision: share of the images within the reference's manifold (Kynkäänniemi et al. 2019); None if the
            reference has no images.
        recall: share of the reference within the images' manifold; likewise.
    """

    fid: float
    sfid: float | None
    inception_score: float
    precision: float | None
    recall: float | None


@attrs.frozen(eq=False)
class Reference:
    """The statistics and features that samples are compared with.

    Attributes:
        gaussian: of the reference's features.
        spatial: of its spatial features, or None.
        features: (n, F) float32 of its images, for precision and recall, or None.
        name: what to call the reference in an error.
    """

    gaussian: Gaussian
    spatial: Gaussian | None
    features: Tensor | None
    name: str = "the reference"

    @classmethod
    def of(cls, found: Features, name: str = "the reference") -> Reference:
        """Make a reference from the features of a set of images."""
        return cls(found.gaussian, found.spatial, found.features, name)


@attrs.frozen(eq=False)
class ReferenceFile:
    """A reference ``.npz`` in the ADM layout.

    Attributes:
        path: of the archive.
        gaussian: ``mu`` and ``sigma``, or None.
        spatial: ``mu_s`` and ``sigma_s``, or None.
        images: ``arr_0``, or None.
    """

    path: Path
    gaussian: Gaussian | None
    spatial: Gaussian | None
    images: NpzImages | None

    def resolve(self, extract: Callable[[Images], Features]) -> tuple[Reference, Features | None]:
        """Return the reference, and the features of its images (None if the file has no images).

        Args:
            extract: called with the images to get their features.
        """
        found = None if self.images is None else extract(self.images)
        # The file's own statistics come first: published ones may be of more images than the file contains.
        if self.gaussian is not None:
            features = None if found is None else found.features
            return Reference(self.gaussian, self.spatial, features, str(self.path)), found
        assert found is not None  # `read_reference` refuses files with neither statistics nor images
        return Reference.of(found, str(self.path)), found


def read_reference(path: str | Path, key: str = "[evaluate] reference") -> ReferenceFile:
    """Read a reference ``.npz`` with ``mu`` and ``sigma``, ``mu_s`` and ``sigma_s``, images ``arr_0``, or some of them.

    Args:
        path: of the archive; its images are not read yet.
        key: the option or setting that named the file, for errors.

    Raises:
        RearkitError: the file is missing or damaged, or has neither ``mu`` and ``sigma`` nor images.
    """
    path = local_file(path)
    try:
        check_npz(path)
        with np.load(path, allow_pickle=False) as archive:
            members = set(archive.files)
            gaussian, spatial = (
                Gaussian(archive[mu].astype(np.float64), archive[sigma].astype(np.float64))
                if {mu, sigma} <= members
                else None
                for mu, sigma in (("mu", "sigma"), ("mu_s", "sigma_s"))
            )
            for found, what in ((gaussian, "mu and sigma"), (spatial, "mu_s and sigma_s")):
                if found is not None and (trouble := found.trouble()):
                    raise ValueError(f"{what}: {trouble}")
            if gaussian is None and ARRAY not in members:
                # Caught below, like the other reasons why a file can't be a reference.
                raise KeyError(f"it holds {', '.join(sorted(members)) or 'nothing'}")
            images = NpzImages.open(path) if ARRAY in members else None
    # A .npy loads as a plain array, which has neither a context nor files: an AttributeError or a TypeError.
    except (*DAMAGE, AttributeError) as error:
        hint = "; make one of such images: evaluate --images FOLDER --make-reference OUT.npz" if path.is_dir() else ""
        raise RearkitError(f"{key}: {path}: no .npz with mu and sigma, or with images arr_0 ({error}){hint}") from None
    return ReferenceFile(path, gaussian, spatial, images)


def score(samples: Features, reference: Reference, nearest_k: int) -> Fidelity:
    """Score images against a reference.

    Args:
        samples: features of the images to score.
        reference: what to compare them with.
        nearest_k: neighbours for precision and recall.

    Raises:
        RearkitError: there are too few images, or the reference's statistics are of another feature space, do not
            vary or are no numbers.
    """
    real = reference.features
    # Precision and recall need the k-th neighbour of each image within its own set.
    for name, images in (("the samples", samples.features), (reference.name, real)):
        if images is not None and len(images) <= nearest_k + 1:
            raise RearkitError(
                f"{name}: scores need more than {nearest_k + 1} images, and there are {len(images)}; give more, or "
                "lower [evaluate] nearest_k (--nearest-k)"
            )
    # As of a classifier that is dead, whose features of anything are 0: all sets would be equally good.
    if not reference.gaussian.varies():
        raise RearkitError(
            f"{reference.name}: its features are all the same, so nothing can be scored; train the classifier of "
            "[evaluate.classifier] at a lower lr, or use another reference"
        )
    precision = recall = None
    if real is not None:
        precision, recall = precision_recall(samples.features, real, nearest_k)
    return Fidelity(
        fid=frechet(samples.gaussian, reference.gaussian, reference.name),
        sfid=None if reference.spatial is None else frechet(samples.spatial, reference.spatial, reference.name),
        inception_score=float(np.mean(samples.split_scores)),
        precision=precision,
        recall=recall,
    )


def frechet(first: Gaussian, second: Gaussian, name: str = "the reference") -> float:
    """Return the Fréchet distance of two normal distributions, ``|mu1-mu2|² + tr(S1 + S2 - 2·(S1·S2)^½)``.

    Args:
        first: of the images to score.
        second: of the reference.
        name: what to call the reference in an error.

    Raises:
        RearkitError: the two have different numbers of features, or something is not a number.
    """
    if first.mu.shape != second.mu.shape:
        raise RearkitError(
            f"{name}: its statistics are of {len(second.mu)} features, but this feature space has {len(first.mu)}; "
            "score in the space that they were computed in: [evaluate] feature_weights, or --feature-weights"
        )
    for gaussian, what in ((first, "the samples"), (second, name)):
        if trouble := gaussian.trouble():
            raise RearkitError(f"{what}: no distance from these statistics of features: {trouble}")
    found = float(fid_statistics_to_metric(attrs.asdict(first), attrs.asdict(second), verbose=False)[KEY_METRIC_FID])
    # For equal distributions rounding can make the result slightly negative. Not `max` of whatever comes: of 0 and NaN
    # it is 0, the best score that there is.
    if not found >= -ROUNDING * (1 + np.trace(first.sigma) + np.trace(second.sigma)):
        raise RearkitError(
            f"{name}: the distance of the samples to it is {found:.4g}, which no two distributions have; its sigma is "
            "no covariance"
        )
    return max(0.0, found)


def precision_recall(samples: Tensor, reference: Tensor, nearest_k: int) -> tuple[float, float]:
    """Return the share of samples (n, F) within the manifold of the reference (m, F), and vice versa.

    Distances are computed where the samples are.
    """
    # Few enough rows to keep a block of distances small, but enough to keep the products fast.
    rows = min(10_000, max(64, BLOCK // max(len(samples), len(reference))))
    found = prc_features_to_metric(
        samples,
        reference.to(samples.device),
        prc_neighborhood=nearest_k,
        prc_batch_size=rows,
        save_cpu_ram=True,  # computes distances block by block
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def nearest(queries: Tensor, among: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Return distance and index, (n,) each, of the nearest row of ``among`` (m, F) to each of ``queries`` (n, F).

    Distances are computed where the queries are; what is returned is on the CPU.
    """
    rows = max(1, min(block, BLOCK // len(among)))
    among = among.to(queries.device)
    found = [torch.cdist(part, among).min(1) for part in queries.split(rows)]
    return torch.cat([one.values for one in found]).cpu(), torch.cat([one.indices for one in found]).cpu()
