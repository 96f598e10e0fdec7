"""One pass over a set of images: everything that scores and warnings need to know of it, in little memory.

Kept are the features of the images and the two Gaussians of FID and sFID, summed up in float64 as the pass goes on; of
the logits only the Inception Score of each split, of the pixels only a hash an image.
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
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

from rearkit.errors import StorageError
from rearkit.evaluation.feature_spaces import FeatureSpace
from rearkit.evaluation.image_streams import Images
from rearkit.system.console import progress_bar, say
from rearkit.system.files import sha256
from rearkit.weights import write_state_dict

SPLIT = 5_000  # images in a split of the Inception Score (ADM's evaluator)
SPATIAL_CHANNELS = 7  # of the convolution for sFID (ADM's evaluator)
SUMMED_ROWS = 1024
CACHE_FORMAT = 1


@attrs.frozen(eq=False)
class Gaussian:
    """The normal distribution that a Fréchet distance takes features for.

    Attributes:
        mu: (F,) float64.
        sigma: (F, F) float64, unbiased.
    """

    mu: np.ndarray
    sigma: np.ndarray


@attrs.frozen(eq=False)
class Features:
    """What a pass over n images found.

    Attributes:
        features: (n, F) float32, for precision, recall and nearest neighbours.
        gaussian: of these features.
        spatial: of the flattened spatial features, row by row, channels last.
        split_scores: the Inception Score of each split of 5,000 images, in order.
        hashes: (n, 2) int64, a hash of each image's pixels.
        lowest: the smallest pixel value.
        highest: the largest.
        side: R, in pixels.
    """

    features: Tensor
    gaussian: Gaussian
    spatial: Gaussian
    split_scores: tuple[float, ...]
    hashes: Tensor
    lowest: int
    highest: int
    side: int

    def __len__(self) -> int:
        return len(self.features)


class RunningGaussian:
    """Mean and covariance of rows that come a batch at a time (Chan, Golub, LeVeque 1979), in float64."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows (B, F); they are summed up many at a time, which is much faster."""
        self._held.append(rows)
        if sum(map(len, self._held)) >= SUMMED_ROWS:
            self._sum_up()

    def _sum_up(self) -> None:
        rows = torch.cat(self._held).double()
        self._held = []
        if not self.count:
            width = rows.shape[1]
            self.mean, self.scatter = rows.new_zeros(width), rows.new_zeros(width, width)
        total = self.count + len(rows)
        mean = rows.mean(0)
        centred, shift = rows - mean, mean - self.mean
        self.scatter.addmm_(centred.T, centred)
        self.scatter.addr_(shift, shift, alpha=self.count * len(rows) / total)
        self.mean = self.mean + shift * (len(rows) / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        """Return what has been summed up; at least two rows must have come."""
        if self._held:
            self._sum_up()
        return Gaussian(self.mean.cpu().numpy(), (self.scatter / (self.count - 1)).cpu().numpy())


@torch.no_grad()
def extract(images: Images, space: FeatureSpace, batch: int, device: torch.device, label: str = "images") -> Features:
    """Pass over images with torch-fidelity's extractor.

    Args:
        images: two or more.
        space: whose network looks at them.
        batch: images at once.
        device: where it computes.
        label: what the images are, for the progress bar.

    Raises:
        RearkitError: the extractor's weights can't be had, or the images can't be read.
    """
    extractor = space.load(device.type == "cuda")
    held: list[Tensor] = []
    handle = extractor.get_submodule(space.spatial).register_forward_hook(lambda _m, _i, output: held.append(output))
    rows, done = torch.empty(0), 0
    hashes: list[bytes] = []
    logits = Splits()
    gaussian, spatial = RunningGaussian(), RunningGaussian()
    lowest, highest, side = 255, 0, 0
    try:
        with progress_bar(f"evaluate: {label}", len(images)) as bar:
            for part in images.batches(batch):
                features_BF, logits_BC = extractor(part.to(device))
                spatial.add(_flat(held.pop()))
                gaussian.add(features_BF)
                if not done:  # room for all of them at once: gathered at the end, they would be in memory twice
                    rows = torch.empty(len(images), features_BF.shape[1])
                if done + len(part) > len(rows):  # more images than were announced
                    rows = torch.cat([rows[:done], torch.empty(len(part), rows.shape[1])])
                rows[done : done + len(part)] = features_BF.cpu()
                done += len(part)
                logits.add(logits_BC)
                hashes += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in _pixels(part)]
                lowest, highest = min(lowest, int(part.min())), max(highest, int(part.max()))
                side = part.shape[-1]
                bar.advance(len(part))
    finally:
        handle.remove()
    return Features(
        features=rows[:done],
        gaussian=gaussian.gaussian(),
        spatial=spatial.gaussian(),
        split_scores=logits.scores(),
        hashes=torch.from_numpy(np.frombuffer(b"".join(hashes), np.int64).reshape(-1, 2).copy()),
        lowest=lowest,
        highest=highest,
        side=side,
    )


class Splits:
    """The Inception Score of each 5,000 images in turn; a rest counts as a split of its own, as in ADM's evaluator."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self._scores: list[float] = []

    def add(self, logits_BC: Tensor) -> None:
        """Take in logits (B, classes)."""
        self._held += logits_BC.cpu().split(1)
        while len(self._held) >= SPLIT:
            self._close(SPLIT)

    def scores(self) -> tuple[float, ...]:
        """Return the scores of the splits, once all logits have come."""
        if self._held:
            self._close(len(self._held))
        return tuple(self._scores)

    def _close(self, count: int) -> None:
        logits, self._held = torch.cat(self._held[:count]), self._held[count:]
        self._scores.append(isc_features_to_metric(logits, splits=1, shuffle=False)[KEY_METRIC_ISC_MEAN])


def _flat(maps: Tensor) -> Tensor:
    """The first channels of maps (B, channels, h, w), as TensorFlow flattens them: (B, h·w·7)."""
    return maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _pixels(images: Tensor) -> np.ndarray:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


@attrs.frozen
class FeatureCache:
    """Features on the disk, by the content of the images and of the extractor's weights.

    Attributes:
        folder: a file a set; a file can be removed at any time.
    """

    folder: Path

    @classmethod
    def default(cls) -> FeatureCache:
        """The user's: ``$REARKIT_CACHE``, or ``rearkit`` in the user's folder for caches."""
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(os.environ.get("REARKIT_CACHE") or Path(caches) / "rearkit") / "features")

    def extract(self, images: Images, space: FeatureSpace, batch: int, device: torch.device, label: str) -> Features:
        """Return the features that are there, or extract and keep them; see `extract` of this module."""
        weights = None if space.weights is None else sha256(Path(space.weights))
        content = {
            "format": CACHE_FORMAT,
            "images": images.digest(),
            "extractor": space.extractor,
            "weights": weights,
            "torch-fidelity": version("torch-fidelity"),
        }
        path = self.folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                found = _from_tensors(load_file(path))
            except (SafetensorError, OSError, KeyError):
                say(f"evaluate: {path} is damaged; extracting the features again")
            else:
                say(f"evaluate: features of {len(found)} {label} taken from {path}")
                return found
        found = extract(images, space, batch, device, label)
        try:
            write_state_dict(path, _to_tensors(found))
        except StorageError as error:
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
        tensors["hashes"],
        lowest,
        highest,
        side,
    )
