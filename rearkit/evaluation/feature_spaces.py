"""Feature spaces: the networks, known to torch-fidelity, that scores are computed in.

A space has three layers: features for FID, precision and recall; logits for the Inception Score; and, for sFID, the
first seven channels of a convolution inside, which still know where in the image something is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
import torch_fidelity
from safetensors import SafetensorError
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.utils import create_feature_extractor

from rearkit.data.pixels import to_float
from rearkit.errors import RearkitError, WeightsError, first_line
from rearkit.evaluation.classifier import load_classifier
from rearkit.weights import read_metadata, read_state_dict

CLASSIFIER = "rearkit-classifier"
INCEPTION = "inception-v3-compat"


@attrs.frozen
class FeatureSpace:
    """A feature extractor known to torch-fidelity.

    Attributes:
        extractor: its registered name.
        weights: file of its weights, or None to have torch-fidelity download them.
        description: what to call it where scores are shown.
        features: its layer for FID, precision and recall.
        logits: its layer for the Inception Score.
        spatial: its submodule whose output (B, channels, h, w) is for sFID.
    """

    extractor: str
    weights: str | None
    description: str
    features: str
    logits: str
    spatial: str

    @property
    def is_inception(self) -> bool:
        """Whether scores in it can be held against published ones."""
        return self.extractor == INCEPTION

    def load(self, cuda: bool) -> nn.Module:
        """Load the network: uint8 (B, 3, R, R) to features (B, F) and logits (B, classes).

        Raises:
            RearkitError: its weights can't be had.
        """
        try:
            extractor: nn.Module = create_feature_extractor(
                self.extractor,
                [self.features, self.logits],
                cuda=cuda,
                feature_extractor_weights_path=self.weights,
                verbose=False,
            )
        except OSError as error:
            raise RearkitError(
                f"torch-fidelity could not get the weights of {self.extractor} ({error}); download them once and give "
                'the file as [evaluate] feature_weights (--feature-weights), or use features = "classifier"'
            ) from error
        except RuntimeError as error:
            raise RearkitError(f"{self.weights}: not the weights of {self.extractor} ({error})") from error
        return extractor


class ClassifierFeatures(FeatureExtractorBase):
    """Our classifier as torch-fidelity wants it: uint8 (B, 3, R, R) to the requested of ``features`` and ``logits``."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **unused: Any
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise RearkitError(f"the feature extractor {CLASSIFIER} needs the weights of a trained classifier")
        self.classifier = load_classifier(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name the layers."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the logits for the Inception Score, the feature layer for all else."""
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """Compiling would cost more than it saves."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Return any valid input."""
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the requested layers, in the order requested."""
        features, logits = self.classifier(to_float(images))
        layers = {"features": features, "logits": logits}
        return tuple(layers[name] for name in self.features_list)


def classifier_space(weights: Path, description: str) -> FeatureSpace:
    """Return the feature space of a classifier saved at ``weights``."""
    if CLASSIFIER not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(CLASSIFIER, ClassifierFeatures)
    return FeatureSpace(CLASSIFIER, str(weights), description, "features", "logits", "classifier.convolutions.8")


def inception_space(weights: str | None) -> FeatureSpace:
    """Return torch-fidelity's port of the original Inception-v3.

    Its ``Mixed_6d.branch1x1`` is the TensorFlow graph's ``mixed_6/conv``, which ADM's evaluator takes for sFID.

    Raises:
        RearkitError: the file of weights is missing, or holds anything but tensors.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise RearkitError(f"[evaluate] feature_weights: {weights}: no such file")
        read_state_dict(weights)  # torch-fidelity would unpickle whatever is in it
    description = "Inception-v3 (torch-fidelity's port of the original TensorFlow graph)"
    return FeatureSpace(INCEPTION, weights, description, "2048", "logits_unbiased", "Mixed_6d.branch1x1")


def space_of_file(weights: str | None) -> FeatureSpace:
    """Return the space whose weights a file holds: a run's ``classifier.safetensors``, or else Inception-v3's.

    Raises:
        RearkitError: it is neither, or damaged.
    """
    if weights is not None and Path(weights).is_file() and weights.endswith(".safetensors"):
        try:
            metadata = read_metadata(weights)
        except SafetensorError as error:
            raise WeightsError(f"{weights}: not a readable weights file ({first_line(error)})") from None
        if "classifier" not in metadata:
            raise RearkitError(f"{weights}: not the classifier of a run (RUN/classifier/classifier.safetensors)")
        return classifier_space(Path(weights), f"the classifier {weights}; not comparable with published scores")
    return inception_space(weights)
