from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from rearkit.data.image_sets import ImageSet
from rearkit.errors import DataError, RearkitError
from rearkit.evaluation import feature_spaces as spaces
from rearkit.evaluation.classifier import Classifier, load_classifier, save_classifier
from rearkit.evaluation.feature_spaces import ClassifierFeatures, FeatureSpace, classifier_space, inception_space
from rearkit.evaluation.features import Features, extract
from rearkit.evaluation.fidelity import Fidelity, Reference, read_reference
from rearkit.evaluation.fidelity import score as score_features
from rearkit.evaluation.image_streams import MemoryImages
from rearkit.evaluation.scores import evaluate
from rearkit.recipe.tables import Recipe
from rearkit.sampling.sampler import Samples


def noise(count: int, seed: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def seen(images: Tensor, space: FeatureSpace, batch: int = 16) -> Features:
    return extract(MemoryImages(images), space, batch, torch.device("cpu"))


def score(images: Tensor, reference: Tensor, space: FeatureSpace, batch: int, nearest_k: int) -> Fidelity:
    return score_features(seen(images, space, batch), Reference.of(seen(reference, space, batch)), nearest_k)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> FeatureSpace:
    """The features of a classifier with random weights that spread them out."""
    torch.manual_seed(0)
    classifier = Classifier(4, 4, 6)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(3)
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_classifier(classifier, path)
    return classifier_space(path, "test")


def features(images: Tensor, space: FeatureSpace) -> tuple[np.ndarray, np.ndarray]:
    assert space.weights is not None
    with torch.no_grad():
        found, logits = load_classifier(space.weights)(images / 255)
    return found.double().numpy(), logits.double().numpy()


def test_a_set_compared_with_itself_has_no_distance_and_lies_within_itself(space: FeatureSpace) -> None:
    images = noise(60, 0)
    found = score(images, images, space, 16, 3)
    assert found.fid == pytest.approx(0, abs=1e-6)
    assert (found.precision, found.recall) == (1, 1)


def test_order_changes_nothing(space: FeatureSpace) -> None:
    images = noise(60, 0)
    found = score(images, images[torch.randperm(60)], space, 16, 3)
    assert found.fid == pytest.approx(0, abs=1e-6)
    assert (found.precision, found.recall) == (1, 1)


def test_fid_is_the_frechet_distance_of_the_two_gaussians(space: FeatureSpace) -> None:
    first, second = noise(80, 0), noise(70, 1, 40, 200)
    a, b = features(first, space)[0], features(second, space)[0]
    products = np.linalg.eigvals(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    root_trace = np.sqrt(products.clip(0) if products.dtype == np.float64 else products.real.clip(0)).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = distance + np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)) - 2 * root_trace
    assert score(first, second, space, 16, 3).fid == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-3


def test_the_inception_score_is_the_exponential_of_the_mean_divergence(space: FeatureSpace) -> None:
    images = noise(50, 0)
    logits = features(images, space)[1]
    probability = np.exp(logits - logits.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    divergence = (probability * np.log(probability / probability.mean(0))).sum(1).mean()
    assert score(images, noise(20, 1), space, 16, 3).inception_score == pytest.approx(np.exp(divergence), rel=1e-4)


@pytest.mark.parametrize("nearest_k", [1, 3])
def test_precision_and_recall_are_shares_within_the_others_nearest_neighbour_balls(
    nearest_k: int, space: FeatureSpace
) -> None:
    first, second = noise(40, 0), noise(50, 1, 30, 230)
    a, b = features(first, space)[0], features(second, space)[0]

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        between = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
        radii = np.sort(between, axis=1)[:, nearest_k]  # the nearest of all is the point itself
        return float((np.linalg.norm(points[:, None] - centres[None], axis=-1) <= radii).any(1).mean())

    found = score(first, second, space, 16, nearest_k)
    assert found.precision == pytest.approx(covered(a, b), abs=0.03)
    assert found.recall == pytest.approx(covered(b, a), abs=0.03)
    assert min(covered(a, b), covered(b, a)) < 1  # or equality shows little


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_scores_do_not_depend_on_the_batch(batch: int, space: FeatureSpace) -> None:
    first, second = noise(30, 0), noise(30, 1)
    one, other = score(first, second, space, batch, 3), score(first, second, space, 30, 3)
    assert attrs.astuple(one) == pytest.approx(attrs.astuple(other), rel=1e-4)


def test_images_further_away_have_a_larger_distance_and_less_recall(space: FeatureSpace) -> None:
    reference = noise(60, 0)
    near, far = score(noise(60, 1), reference, space, 32, 3), score(noise(60, 2, 200, 256), reference, space, 32, 3)
    assert near.fid < far.fid / 10
    assert near.recall is not None
    assert far.recall is not None
    assert near.recall > far.recall + 0.5


def test_the_extractor_gives_the_layers_asked_for_in_their_order(space: FeatureSpace) -> None:
    images = noise(3, 0)
    plain = features(images, space)
    for layers in (["features", "logits"], ["logits", "features"], ["logits"]):
        extractor = ClassifierFeatures("any", layers, feature_extractor_weights_path=space.weights)
        with torch.no_grad():
            found = extractor(images)
        for layer, value in zip(layers, found, strict=True):
            expected = plain[0 if layer == "features" else 1]
            torch.testing.assert_close(value.double().numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen(images, space, 2).features.double().numpy(), plain[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "reference"), [(4, 30), (30, 4)])
def test_too_few_images_are_refused(count: int, reference: int, space: FeatureSpace) -> None:
    with pytest.raises(RearkitError, match="more than 4 images, and there are 4;"):
        score(noise(count, 0), noise(reference, 1), space, 8, 3)
    score(noise(5, 0), noise(5, 1), space, 8, 3)


def test_inception_weights_that_cannot_be_had_are_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **more: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(spaces, "create_feature_extractor", offline)
    with pytest.raises(RearkitError, match=r"feature_weights \(--feature-weights\), or use features = \"classifier\""):
        score(noise(9, 0), noise(9, 1), inception_space(None), 8, 3)
    with pytest.raises(RearkitError, match=r"gone\.pth: no such file"):
        inception_space("gone.pth")


def damaged_reference(path: Path, how: str) -> None:
    if how == "an array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
        return
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6), arr_0=np.zeros((9, 8, 8, 3), np.uint8))
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "nonsense":
        path.write_bytes(b"nonsense" * 20)
    elif how == "changed":
        place = content.index(b"\x93NUMPY") + 200
        path.write_bytes(content[:place] + b"\x55" * 8 + content[place + 8 :])
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "empty", "nonsense", "changed", "an array", "missing"])
def test_a_damaged_reference_is_refused_by_name(how: str, tmp_path: Path) -> None:
    damaged_reference(tmp_path / "reference.npz", how)
    with pytest.raises(RearkitError, match=r"\[evaluate\] reference: .*reference\.npz"):
        read_reference(tmp_path / "reference.npz")


# A run's scores


def coloured(count: int, seed: int) -> ImageSet:
    """Images of three colours, their classes."""
    images, labels = noise(count, seed, 0, 90), torch.arange(count) % 3
    images[torch.arange(count), labels] += 160
    return ImageSet(images, labels)


@pytest.fixture(scope="module")
def recipe(tiny: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def make(**classifier: object) -> Recipe:
        table = {"steps": 80, "batch": 16, "channels": 4, "features": 8, "lr": 2e-2, **classifier}
        return tiny(evaluate={"features": "classifier", "classifier": table})

    return make


def samples(images: ImageSet, classes: Tensor | None = None) -> Samples:
    pixels = images.images.permute(0, 2, 3, 1).numpy()
    return Samples(pixels, (images.labels if classes is None else classes).numpy(), np.zeros((len(pixels), 1)))


def test_good_samples_score_near_the_floor_and_agree_with_their_classes(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    train, held_out = coloured(60, 0), coloured(30, 1)
    found = evaluate(recipe(), samples(coloured(30, 2)), train, held_out, tmp_path)
    wrong = evaluate(recipe(), samples(coloured(30, 2), (torch.arange(30) + 1) % 3), train, held_out)
    poor = evaluate(recipe(), samples(ImageSet(noise(30, 3), torch.arange(30) % 3)), train, held_out)
    assert found.fid_floor is not None
    assert found.fid < 3 * found.fid_floor < poor.fid
    assert found.class_agreement is not None
    assert found.class_agreement > 0.9
    assert wrong.class_agreement is not None
    assert wrong.class_agreement < 0.1
    assert found.classifier_accuracy is not None
    assert found.classifier_accuracy > 0.9
    assert (found.num_samples, found.num_held_out, found.reference) == (30, 30, "60 training images")
    assert "not comparable with published scores" in found.feature_space
    assert load_classifier(tmp_path / "classifier.safetensors").sizes["num_classes"] == 3
    assert found.held_out is not None and found.held_out.fid == found.fid_floor
    assert found.warnings == [] and found.tokenizer is None and found.manifest is None


def test_without_held_out_images_there_is_no_floor_and_no_accuracy(recipe: Callable[..., Recipe]) -> None:
    for held_out in (None, coloured(0, 1)):
        found = evaluate(recipe(), samples(coloured(30, 2)), coloured(60, 0), held_out)
        assert (found.fid_floor, found.classifier_accuracy, found.num_held_out) == (None, None, 0)


def test_a_classifier_below_its_least_accuracy_stops_the_evaluation(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(
        DataError, match=r"\[evaluate\.classifier\] min_accuracy = 1\.0, but the classifier reaches 0\."
    ):
        evaluate(recipe(steps=1, min_accuracy=1.0), samples(coloured(30, 2)), coloured(60, 0), coloured(30, 1))


def test_scores_are_a_function_of_seed_and_images(recipe: Callable[..., Recipe]) -> None:
    def run() -> object:
        return evaluate(recipe(steps=10), samples(coloured(30, 2)), coloured(60, 0), coloured(30, 1))

    torch.manual_seed(1)
    first = run()
    torch.manual_seed(2)
    assert run() == first
