"""Feature spaces: the networks whose features scores are computed from, registered with torch-fidelity.

Three layers of a network are used: features for FID, precision and recall; logits for the Inception Score; and, for
sFID, the first seven channels of an inner convolution, which keep the position in the image.
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
from rearkit.system.hub import local_file
from rearkit.system.weight_files import is_safetensors, read_state_dict
from rearkit.weights import read_metadata

CLASSIFIER = "rearkit-classifier"
INCEPTION = "inception-v3-compat"


@attrs.frozen
class FeatureSpace:
    """A feature extractor registered with torch-fidelity, and which of its layers to use.

    Attributes:
        extractor: registered name.
        weights: file of its weights, or None to let torch-fidelity download them.
        description: what to call the space where scores are shown.
        features: layer for FID, precision and recall.
        logits: layer for the Inception Score.
        spatial: submodule whose output (B, channels, h, w) is used for sFID.
    """

    extractor: str
    weights: str | None
    description: str
    features: str
    logits: str
    spatial: str

    @property
    def is_inception(self) -> bool:
        """Whether scores in this space compare with published ones."""
        return self.extractor == INCEPTION

    def load(self, cuda: bool) -> nn.Module:
        """Load the network, which turns uint8 images (B, 3, R, R) into features (B, F) and logits (B, classes).

        Raises:
            RearkitError: its weights can't be downloaded or read.
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
            # Download errors of urllib are OSErrors; a machine without internet is the usual cause.
            raise RearkitError(
                f"torch-fidelity could not get the weights of {self.extractor} ({error}); download them once and give "
                'the file as [evaluate] feature_weights (--feature-weights), or use features = "classifier"'
            ) from error
        except RuntimeError as error:
            raise RearkitError(f"{self.weights}: not the weights of {self.extractor} ({error})") from error
        return extractor


class ClassifierFeatures(FeatureExtractorBase):
    """Our classifier as a torch-fidelity extractor of the layers ``features`` and ``logits``, from uint8 images."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **unused: Any
    ) -> None:
        super().__init__(name, features_list)
        # torch-fidelity makes the path optional, for networks whose weights it can download.
        if feature_extractor_weights_path is None:
            raise RearkitError(f"the feature extractor {CLASSIFIER} needs the weights of a trained classifier")
        self.classifier = load_classifier(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the layers."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the layer for a metric: logits for the Inception Score, features for all others."""
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False: compiling so small a network would cost more time than it saves."""
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        """Return a valid input, uint8 (1, 3, 32, 32)."""
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Turn uint8 images (B, 3, R, R) into the requested layers, in the order requested."""
        features, logits = self.classifier(to_float(images))
        layers = {"features": features, "logits": logits}
        return tuple(layers[name] for name in self.features_list)


def classifier_space(weights: Path, description: str) -> FeatureSpace:
    """Return the feature space of a classifier saved at ``weights``."""
    # torch-fidelity refuses a second registration of the same name.
    if CLASSIFIER not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(CLASSIFIER, ClassifierFeatures)
    # Module 8 pools the last convolution's output to 4 × 4: small maps that still keep positions.
    return FeatureSpace(CLASSIFIER, str(weights), description, "features", "logits", "classifier.convolutions.8")


def inception_space(weights: str | None) -> FeatureSpace:
    """Return torch-fidelity's port of the original Inception-v3.

    Its ``Mixed_6d.branch1x1`` is ``mixed_6/conv`` of the TensorFlow graph, which ADM's evaluator uses for sFID.

    Args:
        weights: file of its weights, or None to let torch-fidelity download them.

    Raises:
        RearkitError: the file of weights is missing, or holds anything but tensors.
    """
    if weights is not None:
        weights = str(local_file(weights))
        if not Path(weights).is_file():
            what = "a folder, not a file" if Path(weights).is_dir() else "no such file"
            raise RearkitError(f"[evaluate] feature_weights: {weights}: {what}")
        # Read once just to check it: torch-fidelity would unpickle, and so execute, whatever is in the file.
        read_state_dict(weights)
    description = "Inception-v3 (torch-fidelity's port of the original TensorFlow graph)"
    return FeatureSpace(INCEPTION, weights, description, "2048", "logits_unbiased", "Mixed_6d.branch1x1")


def space_of_file(weights: str | None) -> FeatureSpace:
    """Return the feature space of a file of weights: a run's ``classifier.safetensors``, else Inception-v3's.

    Raises:
        RearkitError: the file is neither of these, or is damaged.
    """
    weights = None if weights is None else str(local_file(weights))
    # Inception's published weights are a file of torch's, so the format distinguishes the two.
    if weights is not None and Path(weights).is_file() and is_safetensors(weights):
        try:
            metadata = read_metadata(weights)
        except SafetensorError as error:
            raise WeightsError(f"{weights}: not a readable weights file ({first_line(error)})") from None
        if "classifier" not in metadata:
            raise RearkitError(f"{weights}: not the classifier of a run (RUN/classifier/classifier.safetensors)")
        return classifier_space(Path(weights), f"the classifier {weights}; not comparable with published scores")
    return inception_space(weights)
