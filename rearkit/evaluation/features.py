"""Extract, in one pass over a set of images and in little memory, all that scores and warnings need.

These are the features of the images; the Gaussians of FID and sFID, accumulated in float64; the Inception Score of each
split instead of the logits; and a hash of each image instead of its pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rearkit.errors import DataError, StorageError
from rearkit.evaluation.batch_rows import rows_of
from rearkit.evaluation.class_predictions import PERMUTATION_SEED, Splits
from rearkit.evaluation.feature_spaces import FeatureSpace
from rearkit.evaluation.gaussians import Gaussian, RunningGaussian
from rearkit.evaluation.image_streams import Images
from rearkit.evaluation.shares import Rows
from rearkit.system.console import say
from rearkit.system.files import sha256
from rearkit.system.weight_files import digest_of
from rearkit.weights import read_metadata, write_state_dict

# Part of the key of cached features; to be raised whenever what is kept of a set changes.
CACHE_FORMAT = 2
DIGEST = "sha256"


@attrs.frozen(eq=False)
class Features:
    """What is kept of a set of n images.

    Attributes:
        features: (n, F) float32, for precision, recall and nearest neighbours.
        gaussian: of these features.
        spatial: Gaussian of the spatial features, flattened row by row with channels last.
        split_scores: Inception Score of each split of 5,000 images, in order.
        permuted_score: Inception Score on a seeded permutation of the images.
        classes: (n,) int32, the likeliest class of each image.
        hashes: (n, 2) int64, a 128-bit hash of each image's pixels.
        lowest: smallest pixel value, in 0 to 255.
        highest: largest pixel value, in 0 to 255.
        side: R, in pixels.
    """

    features: Tensor
    gaussian: Gaussian
    spatial: Gaussian
    split_scores: tuple[float, ...]
    permuted_score: float
    classes: Tensor
    hashes: Tensor
    lowest: int
    highest: int
    side: int

    def __len__(self) -> int:
        return len(self.features)


def extract(
    images: Images,
    space: FeatureSpace,
    batch: int,
    device: torch.device,
    label: str = "images",
    seed: int = PERMUTATION_SEED,
) -> Features:
    """Extract the features of images with torch-fidelity's extractor, in one pass.

    Args:
        images: two or more.
        space: gives the network.
        batch: images per batch.
        device: where the network runs.
        label: what the images are, for the progress bar.
        seed: of the permutation on which the Inception Score is computed too.

    Raises:
        RearkitError: the extractor's weights can't be had, or the images can't be read.
    """
    return collect(rows_of(images, space, batch, device, label), len(images), device, seed)


def collect(rows: Iterable[Rows], announced: int, device: torch.device, seed: int = PERMUTATION_SEED) -> Features:
    """Put together what `rearkit.evaluation.batch_rows.looking` has found, batch by batch.

    Args:
        rows: of all batches, in the order of the images.
        announced: how many images there should be; there may be fewer or more.
        device: where sums are computed.
        seed: of the permutation on which the Inception Score is computed too.

    Raises:
        DataError: features or logits of an image are not finite.
    """
    kept, done = torch.empty(0), 0
    hashes: list[Tensor] = []
    logits = Splits(announced, seed)
    gaussian, spatial = RunningGaussian(), RunningGaussian()
    lowest, highest, side = 255, 0, 0
    for found in rows:
        features_BF = found["features"]
        for name in ("features", "spatial", "logits"):
            # Of single numbers too: their mean over a set would hide how many there are.
            if not found[name].isfinite().all():
                raise DataError(
                    f"images {done} to {done + len(features_BF) - 1}: their {name} are NaN or infinite; the weights of "
                    "the feature space are damaged ([evaluate] feature_weights, or the run's classifier)"
                )
        spatial.add(found["spatial"].to(device))
        gaussian.add(features_BF.to(device))
        kept = _with_room(kept, done, features_BF, announced)
        kept[done : done + len(features_BF)] = features_BF
        done += len(features_BF)
        logits.add(found["logits"])
        hashes.append(found["hashes"])
        low, high, side = found["pixels"].tolist()
        lowest, highest = min(lowest, low), max(highest, high)
    # Fewer images may have come than were announced, so rows are cut.
    return Features(
        features=kept[:done],
        gaussian=gaussian.gaussian(),
        spatial=spatial.gaussian(),
        split_scores=logits.scores(),
        permuted_score=logits.permuted_score(),
        classes=logits.classes(),
        hashes=torch.cat(hashes),
        lowest=lowest,
        highest=highest,
        side=side,
    )


def _with_room(rows: Tensor, done: int, part: Tensor, announced: int) -> Tensor:
    """Return rows with room for a part (B, F) after the first ``done``."""
    # For all at once: a list concatenated at the end would be in memory twice.
    if not done:
        rows = torch.empty(announced, part.shape[1])
    # More images came than were announced.
    if done + len(part) > len(rows):
        rows = torch.cat([rows[:done], torch.empty(len(part), rows.shape[1])])
    return rows


@attrs.frozen
class FeatureCache:
    """Features kept on disk, by the content of the images and of the extractor's weights.

    Attributes:
        folder: holds one file for each set of images; files can be deleted at any time.
    """

    folder: Path

    @classmethod
    def default(cls) -> FeatureCache:
        """Return the user's cache: in ``$REARKIT_CACHE``, else in ``rearkit`` in the user's cache folder."""
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(os.environ.get("REARKIT_CACHE") or Path(caches) / "rearkit") / "features")

    def kept(
        self, images: Images, space: FeatureSpace, label: str, make: Callable[[], Features], seed: int
    ) -> Features:
        """Return the kept features of images, or make and keep them.

        Args:
            images: two or more.
            space: the feature space.
            label: what the images are, for messages.
            make: called where none are kept.
            seed: of the permutation on which the Inception Score was computed too.
        """
        path = self.path(images, space, seed)
        found = _read(path, label)
        if found is not None:
            return found
        found = make()
        try:
            tensors = _to_tensors(found)
            write_state_dict(path, tensors, {DIGEST: digest_of(tensors)})
        except StorageError as error:
            # A full disk or a read-only home folder costs time on the next call, but is no reason to fail.
            say(f"evaluate: the features are not kept for another time ({error})")
        return found

    def path(self, images: Images, space: FeatureSpace, seed: int) -> Path:
        """Return the file in which features of images are kept, if they are."""
        # Everything that changes the features. Without weights of our own, torch-fidelity's version decides them.
        weights = None if space.weights is None else sha256(Path(space.weights))
        content = {
            "format": CACHE_FORMAT,
            "images": images.digest(),
            "extractor": space.extractor,
            "weights": weights,
            "torch-fidelity": version("torch-fidelity"),
            # Left out at its default, so that what was kept before stays known.
            **({} if seed == PERMUTATION_SEED else {"permutation": seed}),
        }
        # 128 bits of the hash are enough to be unique, and make short names.
        return self.folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.safetensors"


def _read(path: Path, label: str) -> Features | None:
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        # Earlier versions kept no digest.
        if read_metadata(path).get(DIGEST, digest := digest_of(tensors)) != digest:
            raise ValueError(f"{path}: its checksum differs")
        found = _from_tensors(tensors)
    except (SafetensorError, OSError, KeyError, ValueError):
        say(f"evaluate: {path} is damaged; extracting the features again")
        return None
    say(f"evaluate: features of {len(found)} {label} taken from {path}")
    return found


def _to_tensors(found: Features) -> dict[str, Tensor]:
    return {
        "features": found.features,
        "mu": torch.from_numpy(found.gaussian.mu),
        "sigma": torch.from_numpy(found.gaussian.sigma),
        "mu_s": torch.from_numpy(found.spatial.mu),
        "sigma_s": torch.from_numpy(found.spatial.sigma),
        "split_scores": torch.tensor(found.split_scores, dtype=torch.float64),
        "permuted_score": torch.tensor([found.permuted_score], dtype=torch.float64),
        "classes": found.classes,
        "hashes": found.hashes,
        "pixels": torch.tensor([found.lowest, found.highest, found.side]),
    }


def _from_tensors(tensors: dict[str, Tensor]) -> Features:
    lowest, highest, side = tensors["pixels"].tolist()
    return Features(
        tensors["features"],
        Gaussian(tensors["mu"].numpy(), tensors["sigma"].numpy()),
        Gaussian(tensors["mu_s"].numpy(), tensors["sigma_s"].numpy()),
        tuple(tensors["split_scores"].tolist()),
        tensors["permuted_score"].item(),
        tensors["classes"],
        tensors["hashes"],
        lowest,
        highest,
        side,
    )
