"""What is no number never scores well: of 0 and NaN, `max` is 0, the best distance that there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rearkit.errors import DataError, DivergedError, RearkitError, WeightsError
from rearkit.evaluation.classifier import Classifier, load_classifier, save_classifier, train_classifier
from rearkit.evaluation.feature_spaces import classifier_space
from rearkit.evaluation.features import extract
from rearkit.evaluation.fidelity import Reference, frechet, read_reference, score
from rearkit.evaluation.gaussians import Gaussian
from rearkit.evaluation.image_streams import MemoryImages
from rearkit.recipe.tables import ClassifierTable

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def gaussian(mean: float = 0.0, variance: float = 1.0) -> Gaussian:
    return Gaussian(np.full(3, mean), np.eye(3) * variance)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["mu", "sigma"])
def test_no_distance_from_what_is_no_number(bad: float, where: str) -> None:
    broken = gaussian()
    getattr(broken, where).flat[0] = bad
    for pair in ((broken, gaussian()), (gaussian(), broken)):
        with pytest.raises(RearkitError, match=r"numbers of the (mean|covariance) are NaN or infinite"):
            frechet(*pair)


def test_no_distance_from_what_is_no_covariance() -> None:
    with pytest.raises(RearkitError, match="the smallest variance is -1, below 0"):
        frechet(gaussian(), gaussian(variance=-1))
    with pytest.raises(RearkitError, match="the covariance is not symmetric"):
        frechet(gaussian(), Gaussian(np.zeros(3), np.eye(3) + np.triu(np.full((3, 3), 0.1), 1)))
    crossed = Gaussian(np.zeros(3), np.eye(3) + 50 * (np.ones((3, 3)) - np.eye(3)))
    with pytest.raises(RearkitError, match="which no two distributions have"):
        frechet(crossed, crossed)
    assert frechet(gaussian(), gaussian()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_reference_that_is_no_number_is_refused_when_it_is_opened(bad: float, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, mu=np.array([0.0, bad]), sigma=np.eye(2))
    with pytest.raises(RearkitError, match=r"reference\.npz: .*mu and sigma: 1 of 2 numbers of the mean are NaN"):
        read_reference(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(RearkitError, match=r"a mean of shape \(3,\) with a covariance of shape \(2, 2\)"):
        read_reference(path)


def test_a_dead_classifier_scores_nothing(tmp_path: Path) -> None:
    classifier = Classifier(3, 4, 6)
    with torch.no_grad():
        classifier.features.bias.fill_(-1e6)  # so that its features of anything are 0
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    space = classifier_space(tmp_path / "classifier.safetensors", "test")
    found = extract(MemoryImages(IMAGES), space, 8, CPU)
    with pytest.raises(RearkitError, match="its features are all the same, so nothing can be scored"):
        score(found, Reference.of(found), 3)


def test_features_that_are_no_numbers_stop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = Classifier(3, 4, 6)
    with torch.no_grad():
        classifier.features.bias.fill_(1e30)
        classifier.head.weight.fill_(1e30)  # finite, and overflows
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    space = classifier_space(tmp_path / "classifier.safetensors", "test")
    with pytest.raises(DataError, match="images 0 to 7: their logits are NaN or infinite"):
        extract(MemoryImages(IMAGES), space, 8, CPU)


def test_a_classifier_of_no_numbers_is_refused(tmp_path: Path) -> None:
    classifier = Classifier(3, 4, 6)
    with torch.no_grad():
        classifier.head.bias[0] = torch.nan
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors are NaN or infinite \(head\.bias\)"):
        load_classifier(tmp_path / "classifier.safetensors")


def test_a_classifier_that_diverges_stops() -> None:
    table = ClassifierTable(steps=50, batch=8, channels=2, features=4, lr=1e30)
    with pytest.raises(DivergedError, match=r"\[evaluate.classifier\]: the loss of a step was (nan|inf)"):
        train_classifier(IMAGES, torch.arange(12) % 3, 3, table, 0, CPU)
