from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor

from rearkit.errors import DataError, WeightsError
from rearkit.evaluation.classifier import (
    Classifier,
    classify,
    find_classifier,
    load_classifier,
    save_classifier,
    train_classifier,
)
from rearkit.recipe.tables import ClassifierTable
from rearkit.system.weight_files import read_state_dict
from rearkit.weights import write_state_dict

CPU = torch.device("cpu")
TABLE = ClassifierTable(steps=120, batch=16, channels=4, features=8, lr=2e-2)


def coloured(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images of three colours, and which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 90, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[torch.arange(count), labels] += 160
    return images, labels


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return train_classifier(*coloured(60), 3, TABLE, 0, CPU)


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    images = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match="all images are of one class, and a classifier needs several"):
        find_classifier(tmp_path, images, torch.zeros(8, dtype=torch.int64), ClassifierTable(), 0, CPU)


def test_a_classifier_learns_to_tell_images_it_has_not_seen(classifier: Classifier) -> None:
    images, labels = coloured(90, seed=1)
    assert (classify(classifier, images, 32) == labels).double().mean() > 0.95
    torch.manual_seed(0)
    fresh = Classifier(3, 4, 8).eval()
    assert (classify(fresh, images, 32) == labels).double().mean() < 0.8


def test_training_is_a_function_of_the_seed() -> None:
    table = ClassifierTable(steps=3, batch=8, channels=2, features=4)
    runs = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        runs.append(train_classifier(*coloured(30), 3, table, seed, CPU).head.weight)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_saved_classifier_comes_back_with_its_sizes(classifier: Classifier, tmp_path: Path) -> None:
    save_classifier(classifier, tmp_path / "classifier.safetensors")
    loaded = load_classifier(tmp_path / "classifier.safetensors")
    assert loaded.sizes == classifier.sizes == {"num_classes": 3, "channels": 4, "features": 8}
    assert not loaded.training
    images, _ = coloured(5)
    for first, second in zip(loaded(images / 255), classifier(images / 255), strict=True):
        assert torch.equal(first, second)


def test_a_classifier_whose_tensors_are_of_other_sizes_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    save_classifier(classifier, tmp_path / "a.safetensors")
    state = read_state_dict(tmp_path / "a.safetensors")
    sizes = {"num_classes": 4, "channels": 4, "features": 8}
    write_state_dict(tmp_path / "b.safetensors", state, {"classifier": json.dumps({"sizes": sizes})})
    with pytest.raises(WeightsError, match=r"head\.weight"):
        load_classifier(tmp_path / "b.safetensors")


@pytest.mark.parametrize("side", [8, 16, 28, 33])
def test_any_side_gives_features_that_are_not_negative_and_logits(side: int) -> None:
    features, logits = Classifier(5, 2, 7).eval()(torch.rand(3, 3, side, side))
    assert features.shape == (3, 7)
    assert logits.shape == (3, 5)
    assert features.min() >= 0


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_classes_do_not_depend_on_the_batch(batch: int, classifier: Classifier) -> None:
    images, _ = coloured(20, seed=2)
    assert torch.equal(classify(classifier, images, batch), classify(classifier, images, 20))


def test_a_classifier_of_the_same_images_and_settings_is_found_again(tmp_path: Path) -> None:
    table = ClassifierTable(steps=2, batch=8, channels=2, features=4)
    images, labels = coloured(30)
    find_classifier(tmp_path, images, labels, table, 0, CPU)
    path = tmp_path / "classifier.safetensors"
    made = path.stat().st_ino
    find_classifier(tmp_path, images, labels, table, 0, CPU)
    assert path.stat().st_ino == made
    for other in ((1 - images, labels, table, 0), (images, labels, attrs.evolve(table, steps=3), 0)):
        find_classifier(tmp_path, *other, CPU)
        assert path.stat().st_ino != made
        made = path.stat().st_ino
    path.write_bytes(b"damaged")
    assert find_classifier(tmp_path, images, labels, table, 0, CPU).sizes["features"] == 4
    assert load_classifier(path).sizes["features"] == 4
