"""FID, sFID, Inception Score, precision and recall: formulas by torch-fidelity, protocol as in ADM's evaluator.

As in ADM's ``evaluator.py`` (openai/guided-diffusion): the reference's ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` are
used as they are where it has them; precision and recall are against its images ``arr_0``, with 3 neighbours; the
Inception Score is the mean over splits of 5,000 in the order of the samples; sFID is of the first seven channels of
``mixed_6/conv``. What differs: features come from torch-fidelity's port of the network, the trace of the matrix root
comes from eigenvalues instead of ``sqrtm``, and distances are computed in float32, where ADM's are in float16 as long
as none overflows.
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
from rearkit.evaluation.features import Features, Gaussian
from rearkit.evaluation.image_streams import ARRAY, DAMAGE, Images, NpzImages

FULL_SET = 50_000  # published scores are of so many samples
BLOCK = 2**24  # distances held at once, for precision and recall


@attrs.frozen
class Fidelity:
    """Scores of a set of images against a reference set.

    Attributes:
        fid: Fréchet distance of the feature distributions (Heusel et al. 2017).
        sfid: the same of spatial features (Nash et al. 2021); None where the reference has no statistics of them.
        inception_score: exponential of the mean divergence of the class predictions (Salimans et al. 2016).
        precision: share of the images within the reference's manifold (Kynkäänniemi et al. 2019).
        recall: share of the reference within the images' manifold.
    """

    fid: float
    sfid: float | None
    inception_score: float
    precision: float | None
    recall: float | None


@attrs.frozen(eq=False)
class Reference:
    """What samples are compared with.

    Attributes:
        gaussian: of its features.
        spatial: of its spatial features, or None.
        features: (n, F) float32 of its images for precision and recall, or None.
        name: what to call it in an error.
    """

    gaussian: Gaussian
    spatial: Gaussian | None
    features: Tensor | None
    name: str = "the reference"

    @classmethod
    def of(cls, found: Features, name: str = "the reference") -> Reference:
        """Take a set of images as the reference."""
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
        """Compute what it lacks from its images: the reference, and what a pass over its images found."""
        found = None if self.images is None else extract(self.images)
        if self.gaussian is not None:
            features = None if found is None else found.features
            return Reference(self.gaussian, self.spatial, features, str(self.path)), found
        assert found is not None  # `read_reference` sees to it that there is one of the two
        return Reference.of(found, str(self.path)), found


def read_reference(path: str | Path, key: str = "[evaluate] reference") -> ReferenceFile:
    """Read a reference ``.npz``: ``mu``, ``sigma``, ``mu_s``, ``sigma_s`` and images ``arr_0``, or some of them.

    Args:
        path: of the archive; its images are not read yet.
        key: what to call it in an error.

    Raises:
        RearkitError: it is missing or damaged, or has neither ``mu`` and ``sigma`` nor images.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            members = set(archive.files)
            gaussian, spatial = (
                Gaussian(archive[mu].astype(np.float64), archive[sigma].astype(np.float64))
                if {mu, sigma} <= members
                else None
                for mu, sigma in (("mu", "sigma"), ("mu_s", "sigma_s"))
            )
            if gaussian is None and ARRAY not in members:
                raise KeyError(f"it holds {', '.join(sorted(members)) or 'nothing'}")
            images = NpzImages.open(path) if ARRAY in members else None
    except (*DAMAGE, AttributeError) as error:
        raise RearkitError(f"{key}: {path}: no .npz with mu and sigma, or with images arr_0 ({error})") from None
    return ReferenceFile(path, gaussian, spatial, images)


def score(samples: Features, reference: Reference, nearest_k: int) -> Fidelity:
    """Score images against a reference.

    Raises:
        RearkitError: there are too few images, or the reference's statistics are of another feature space.
    """
    real = reference.features
    for name, images in (("the samples", samples.features), (reference.name, real)):
        if images is not None and len(images) <= nearest_k + 1:
            raise RearkitError(
                f"{name}: scores need more than {nearest_k + 1} images, and there are {len(images)}; give more, or "
                "lower [evaluate] nearest_k (--nearest-k)"
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
    """Fréchet distance of two normal distributions, ``|mu1-mu2|² + tr(S1 + S2 - 2·(S1·S2)^½)``.

    Args:
        first: of what is scored.
        second: of the reference.
        name: what to call the reference in an error.

    Raises:
        RearkitError: they are of different widths.
    """
    if first.mu.shape != second.mu.shape:
        raise RearkitError(
            f"{name}: its statistics are of {len(second.mu)} features, but this feature space has {len(first.mu)}; "
            "score in the space that they were computed in: [evaluate] feature_weights, or --feature-weights"
        )
    found = fid_statistics_to_metric(attrs.asdict(first), attrs.asdict(second), verbose=False)
    return max(0.0, float(found[KEY_METRIC_FID]))  # of equal distributions, rounding can make it a little negative


def precision_recall(samples: Tensor, reference: Tensor, nearest_k: int) -> tuple[float, float]:
    """Share of samples (n, F) in the manifold of the reference (m, F), and of the reference in that of the samples."""
    rows = min(10_000, max(64, BLOCK // max(len(samples), len(reference))))
    found = prc_features_to_metric(
        samples,
        reference,
        prc_neighborhood=nearest_k,
        prc_batch_size=rows,
        save_cpu_ram=True,  # block by block
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def nearest(queries: Tensor, among: Tensor, block: int = 1024) -> tuple[Tensor, Tensor]:
    """Find the nearest of ``among`` (m, F) to each of ``queries`` (n, F): distances and indices (n,)."""
    rows = max(1, min(block, BLOCK // len(among)))
    found = [torch.cdist(part, among).min(1) for part in queries.split(rows)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
