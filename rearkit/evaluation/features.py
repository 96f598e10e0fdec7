"""Extract, in one pass over a set of images and in little memory, all that scores and warnings need.

These are the features of the images; the Gaussians of FID and sFID, accumulated in float64; the Inception Score of each
split instead of the logits; and a hash of each image instead of its pixels.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import attrs
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rearkit.errors import StorageError
from rearkit.evaluation.class_predictions import PERMUTATION_SEED, Splits
from rearkit.evaluation.feature_spaces import FeatureSpace
from rearkit.evaluation.image_streams import Images
from rearkit.system.console import progress_bar, say
from rearkit.system.files import sha256
from rearkit.weights import write_state_dict

SPATIAL_CHANNELS = 7  # of the convolution for sFID (ADM's evaluator)
# Rows to collect before they are added to the sums: one large matrix product is much faster than many small ones.
SUMMED_ROWS = 1024
# Part of the key of cached features; to be raised whenever what is kept of a set changes.
CACHE_FORMAT = 2


@attrs.frozen(eq=False)
class Gaussian:
    """Mean and covariance of features: the normal distribution that a Fréchet distance assumes.

    Attributes:
        mu: mean, (F,) float64.
        sigma: unbiased covariance, (F, F) float64.
    """

    mu: np.ndarray
    sigma: np.ndarray


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


class RunningGaussian:
    """Mean and covariance of rows added batch by batch, in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add rows (B, F)."""
        self._held.append(rows)
        if sum(map(len, self._held)) >= SUMMED_ROWS:
            self._sum_up()

    def _sum_up(self) -> None:
        # In float64: FID is a small difference of large numbers, so float32 sums over 50,000 rows would show in it.
        rows = torch.cat(self._held).double()
        self._held = []
        # Only the first rows say how wide they are, and on which device.
        if not self.count:
            width = rows.shape[1]
            self.mean = rows.new_zeros(width)
            self.scatter = rows.new_zeros(width, width)
        total = self.count + len(rows)
        mean = rows.mean(0)
        centred = rows - mean
        shift = mean - self.mean
        # Scatters around two means add up to the scatter around the joint mean with an outer product of their shift.
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(shift, shift, alpha=self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return the Gaussian of all rows added so far, of which there must be at least two."""
        if self._held:
            self._sum_up()
        return Gaussian(self.mean.cpu().numpy(), (self.scatter / (self.count - 1)).cpu().numpy())


@torch.no_grad()
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
    extractor = space.load(device.type == "cuda")
    # torch-fidelity cannot return the spatial layer, so a hook catches its output.
    held: list[Tensor] = []
    handle = extractor.get_submodule(space.spatial).register_forward_hook(lambda _m, _i, output: held.append(output))
    rows, done = torch.empty(0), 0
    hashes: list[bytes] = []
    logits = Splits(len(images), seed)
    gaussian, spatial = RunningGaussian(), RunningGaussian()
    lowest, highest, side = 255, 0, 0
    try:
        with progress_bar(f"evaluate: {label}", len(images)) as bar:
            for part in images.batches(batch):
                features_BF, logits_BC = extractor(part.to(device))
                spatial.add(_flat(held.pop()))
                gaussian.add(features_BF)
                rows = _with_room(rows, done, features_BF, len(images))
                rows[done : done + len(part)] = features_BF.cpu()
                done += len(part)
                logits.add(logits_BC)
                hashes += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in _pixels(part)]
                lowest = min(lowest, int(part.min()))
                highest = max(highest, int(part.max()))
                side = part.shape[-1]
                bar.advance(len(part))
    finally:
        handle.remove()
    # Fewer images may have come than were announced, so rows are cut; bytes are read-only, so hashes are copied.
    return Features(
        features=rows[:done],
        gaussian=gaussian.gaussian(),
        spatial=spatial.gaussian(),
        split_scores=logits.scores(),
        permuted_score=logits.permuted_score(),
        classes=logits.classes(),
        hashes=torch.from_numpy(np.frombuffer(b"".join(hashes), np.int64).reshape(-1, 2).copy()),
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


def _flat(maps: Tensor) -> Tensor:
    """Flatten the first 7 channels of maps (B, channels, h, w) to (B, h·w·7), channels last as in TensorFlow."""
    return maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _pixels(images: Tensor) -> np.ndarray:
    """Return images (B, R, R, 3), the layout of an ``.npz``, so that hashes do not depend on where images come from."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


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

    def extract(
        self,
        images: Images,
        space: FeatureSpace,
        batch: int,
        device: torch.device,
        label: str,
        seed: int = PERMUTATION_SEED,
    ) -> Features:
        """Return the kept features of images, or extract and keep them; see the function `extract`."""
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
        path = self.folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                found = _from_tensors(load_file(path))
            except (SafetensorError, OSError, KeyError):
                say(f"evaluate: {path} is damaged; extracting the features again")
            else:
                say(f"evaluate: features of {len(found)} {label} taken from {path}")
                return found
        found = extract(images, space, batch, device, label, seed)
        try:
            write_state_dict(path, _to_tensors(found))
        except StorageError as error:
            # A full disk or a read-only home folder costs time on the next call, but is no reason to fail.
            say(f"evaluate: the features are not kept for another time ({error})")
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
