"""A small classifier trained on a run's own images: a feature space for scores without Inception's weights.

Scores in its feature space compare runs on the same data set. They do not compare with Inception scores.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import attrs
import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.data.pixels import to_float
from rearkit.errors import DataError, DivergedError, WeightsError
from rearkit.recipe.tables import ClassifierTable
from rearkit.system.checksums import seal, unseal
from rearkit.system.console import progress_bar, say
from rearkit.system.devices import seed_everything
from rearkit.system.weight_files import digest_of, read_state_dict
from rearkit.weights import fit_state_dict, write_state_dict

FILE = "classifier.safetensors"
# As augmentation, training images are shifted by up to 1/16 of their side: 2 pixels of 32.
MAX_SHIFT = 16
# Of images: two poolings halve it.
LEAST_SIDE = 4


class Classifier(nn.Module):
    """Three convolutions with pooling, a feature layer and a linear head.

    Args:
        num_classes: C.
        channels: output channels of the first convolution; the others have twice as many.
        features: width of the feature layer.
    """

    def __init__(self, num_classes: int, channels: int, features: int) -> None:
        super().__init__()
        # Saved with the weights, so that a file alone is enough to build the network again.
        self.sizes = {"num_classes": num_classes, "channels": channels, "features": features}
        wide = 2 * channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        )  # fmt: skip
        self.dropout = nn.Dropout(0.3)
        self.features = nn.Linear(16 * wide, features)
        self.head = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turn float images (B, 3, R, R) in [0, 1] into features (B, features) >= 0 and logits (B, C)."""
        features = F.relu(self.features(self.dropout(self.convolutions(images * 2 - 1))))
        return features, self.head(features)


def train_classifier(
    images: Tensor, labels: Tensor, num_classes: int, table: ClassifierTable, seed: int, device: torch.device
) -> Classifier:
    """Train a classifier on uint8 images (n, 3, R, R) and int64 labels (n,).

    Args:
        images: to train on.
        labels: their classes, in [0, C).
        num_classes: C.
        table: the classifier's settings.
        seed: of weights, batches, shifts and dropout.
        device: where to train.

    Returns:
        the classifier, in eval mode.

    Raises:
        DivergedError: a loss was not finite.
    """
    # The same images and settings must give the same feature space, or scores would not compare.
    seed_everything(seed, "classifier")
    classifier = Classifier(num_classes, table.channels, table.features).to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=table.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, table.lr, total_steps=table.steps)
    shift = images.shape[-1] // MAX_SHIFT
    with progress_bar("evaluate: classifier", table.steps) as bar:
        for _ in range(table.steps):
            index = torch.randint(len(images), (table.batch,))
            # One shift for the whole batch is a single cheap roll, and varies enough over the steps.
            down, right = torch.randint(-shift, shift + 1, (2,)).tolist()
            batch = to_float(images[index].roll((down, right), (2, 3))).to(device)
            loss = F.cross_entropy(classifier(batch)[1], labels[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            value = loss.item()
            if not math.isfinite(value):
                raise DivergedError(
                    f"[evaluate.classifier]: the loss of a step was {value}; train it at a lower lr than {table.lr}"
                )
            bar.advance(1, f"loss {value:.3f}")
    return classifier.eval()


@torch.no_grad()
def classify(classifier: Classifier, images: Tensor, batch: int) -> Tensor:
    """Predict the classes (n,) int64 of uint8 images (n, 3, R, R), ``batch`` images at a time."""
    device = next(classifier.parameters()).device
    return torch.cat([classifier(to_float(part).to(device))[1].argmax(-1) for part in images.split(batch)]).cpu()


def check_accuracy(accuracy: float, least: float) -> None:
    """Compare a classifier's accuracy on held-out images with ``min_accuracy``.

    Raises:
        DataError: it is below.
    """
    # Scores by a classifier that does not know the classes would mean nothing.
    if not accuracy >= least:
        raise DataError(
            f"[evaluate.classifier] min_accuracy = {least}, but the classifier reaches {accuracy:.3f} on held-out "
            "images; train it for more steps"
        )


def find_classifier(
    folder: Path, images: Tensor, labels: Tensor, table: ClassifierTable, seed: int, device: torch.device
) -> Classifier:
    """Load a folder's classifier if it was trained on these images and settings; else train one and save it there.

    Runs that share a classifier are scored in the same feature space.

    Args:
        folder: that has or gets the classifier's file.
        images: (n, 3, R, R) uint8.
        labels: (n,) int64; the largest is C - 1.
        table: the classifier's settings.
        seed: of its training.
        device: to put the classifier on.

    Raises:
        DataError: all images are of one class, of which a classifier learns nothing.
    """
    if not labels.any():
        raise DataError(
            '[evaluate] features: all images are of one class, and a classifier needs several; use "inception"'
        )
    path = folder / FILE

    # The images themselves are hashed, not their source: a changed shard then changes the digest too.
    def digest_under(floor: float) -> str:
        settings = json.dumps([attrs.asdict(table) | {"min_accuracy": floor}, seed]).encode()  # type: ignore[arg-type]
        return hashlib.sha256(settings + images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()

    # The floor changes no weights; earlier versions counted it.
    digest = digest_under(0.0)
    try:
        with safetensors.safe_open(path, "pt") as file:
            trained_on = (_about(file.metadata()) or {"trained_on": digest})["trained_on"]
        if trained_on == digest or trained_on == digest_under(table.min_accuracy):
            return load_classifier(path).to(device)
    except FileNotFoundError:
        pass
    except (OSError, KeyError, TypeError, ValueError, WeightsError, safetensors.SafetensorError):
        # Damaged or of another layout: the classifier can always be trained again.
        say(f"evaluate: {path} is damaged; training the classifier again")
    classifier = train_classifier(images, labels, int(labels.max()) + 1, table, seed, device)
    save_classifier(classifier, path, digest)
    return classifier


def save_classifier(classifier: Classifier, path: Path, trained_on: str = "") -> None:
    """Save a classifier's weights, with its sizes and a digest of its images and settings."""
    # A single key: safetensors writes several keys in an order that differs from run to run.
    told = {"sizes": classifier.sizes, "trained_on": trained_on, "weights": digest_of(classifier.state_dict())}
    write_state_dict(path, classifier.state_dict(), {"classifier": json.dumps(seal(told))})


def load_classifier(path: str | Path) -> Classifier:
    """Load a classifier saved by `save_classifier`, in eval mode.

    Raises:
        WeightsError: the file is damaged, or the weights do not fit the sizes saved with them.
    """
    with safetensors.safe_open(path, "pt") as file:
        about = _about(file.metadata())
    state = read_state_dict(path)
    if about is None or about.get("weights", digest := digest_of(state)) != digest:
        raise WeightsError(f"{path}: damaged, its checksum differs; remove it, and the classifier is trained again")
    classifier = Classifier(**about["sizes"])
    fit_state_dict(classifier, state, str(path))
    return classifier.eval()


def is_intact(path: Path) -> bool | None:
    """Return whether a saved classifier is what was written; None if it has no checksum."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        load_classifier(path)
        return True if "weights" in (_about(metadata) or {}) else None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, WeightsError, safetensors.SafetensorError):
        return False


def _about(metadata: dict[str, str]) -> dict[str, Any] | None:
    """Return what a classifier's file tells of it; None if that is damaged."""
    return unseal(json.loads(metadata["classifier"])).content
