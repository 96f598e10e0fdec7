"""How unlike two images look: a distance between a network's features of both, after LPIPS (Zhang et al. 2018)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.errors import RearkitError
from rearkit.evaluation.classifier import LEAST_SIDE as CLASSIFIER_SIDE
from rearkit.evaluation.classifier import Classifier
from rearkit.system.weight_files import read_state_dict

# The least side of images for their features: each pooling halves it.
LEAST_SIDE = {"classifier": CLASSIFIER_SIDE, "lpips": 16}


class Perceptual:
    """A distance with its weight in the loss.

    Args:
        distance: of two batches (B, 3, R, R) in [0, 1], a scalar; it passes gradients to the first.
        weight: in the loss.
    """

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], weight: float) -> None:
        self.distance = distance
        self.weight = weight

    def __call__(self, rebuilt_B3RR: Tensor, images_B3RR: Tensor) -> Tensor:
        """Return the mean distance of images as they come back and as they were, a scalar."""
        return self.distance(rebuilt_B3RR, images_B3RR)


def classifier_distance(classifier: Classifier) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the distance in a classifier's convolutions: of vectors of length 1 at each place, all layers alike."""
    classifier.requires_grad_(False)

    def features(images: Tensor) -> list[Tensor]:
        found, x = [], images * 2 - 1
        for layer in classifier.convolutions:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(F.normalize(x.float(), dim=1))
        return found

    def distance(rebuilt: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(images)
        pairs = zip(features(rebuilt), wanted, strict=True)
        return torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean()

    return distance


def lpips_distance(vgg_weights: str, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Return LPIPS with VGG-16, whose weights are torchvision's in a file; the package has the linear layers'.

    Raises:
        RearkitError: the package lpips is not installed.
        WeightsError: the file does not hold VGG-16's weights.
    """
    check_lpips()
    # Here, since it takes seconds to import, and few fits need it.
    import lpips

    from rearkit.weights import fit_state_dict

    # Its own way to VGG's weights is a download; without, they are random until those of the file are read.
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = read_state_dict(vgg_weights)
    # Its parts are VGG's layers under their numbers: slice1.0.weight is features.0.weight.
    needed = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    found = {name: state[theirs] for name, theirs in needed.items() if theirs in state}
    fit_state_dict(network.net, found, vgg_weights)
    network.to(device).eval().requires_grad_(False)
    return lambda rebuilt, images: network(rebuilt.float() * 2 - 1, images * 2 - 1).mean()


def check_lpips() -> None:
    """Check that the package lpips is installed.

    Raises:
        RearkitError: it is not.
    """
    if importlib.util.find_spec("lpips") is None:
        raise RearkitError(
            "[tokenizer.fit.perceptual] features = 'lpips' needs the package lpips; run: pip install 'rearkit[lpips]', "
            "or set features = 'classifier'"
        )
