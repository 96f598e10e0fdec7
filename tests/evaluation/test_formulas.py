"""Scores by closed forms: Gaussians of known distance, predictions of known entropy, manifolds made by hand."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
import torch_fidelity
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset as TorchDataset

from rearkit.evaluation import class_predictions
from rearkit.evaluation.class_predictions import Splits
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.feature_spaces import CLASSIFIER, classifier_space
from rearkit.evaluation.features import extract
from rearkit.evaluation.fidelity import Reference, frechet, nearest, precision_recall, score
from rearkit.evaluation.gaussians import Gaussian, RunningGaussian
from rearkit.evaluation.image_streams import MemoryImages

SEEDS = st.integers(0, 10_000)


def gaussian(seed: int, width: int = 4) -> Gaussian:
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(width, width))
    return Gaussian(generator.normal(size=width), root @ root.T)


# FID


def test_between_two_gaussians_with_diagonal_covariances_it_is_a_sum_over_dimensions() -> None:
    first = Gaussian(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 4.0, 9.0]))
    second = Gaussian(np.array([3.0, 1.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet(first, second) == pytest.approx(9 + 0 + 4 + (1 - 2) ** 2 + 0 + (3 - 1) ** 2)


def test_samples_of_two_known_gaussians_come_to_their_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    sums = RunningGaussian(), RunningGaussian()
    for _ in range(20):
        sums[0].add(torch.randn(2000, 3, generator=generator))
        sums[1].add(2 * torch.randn(2000, 3, generator=generator) + 1)
    assert frechet(sums[0].gaussian(), sums[1].gaussian()) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.02)


@given(SEEDS, SEEDS)
def test_fid_is_symmetric_not_negative_and_zero_of_a_set_and_itself(a: int, b: int) -> None:
    first, second = gaussian(a), gaussian(b)
    assert frechet(first, second) == pytest.approx(frechet(second, first), rel=1e-5, abs=1e-5)
    assert frechet(first, second) >= 0
    assert frechet(first, first) == pytest.approx(0, abs=1e-5)


@given(SEEDS, st.floats(-50, 50))
def test_a_shift_adds_its_square(seed: int, shift: float) -> None:
    first = gaussian(seed)
    moved = attrs.evolve(first, mu=first.mu + shift)
    assert frechet(first, moved) == pytest.approx(4 * shift**2, rel=1e-5, abs=1e-4)


@given(SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) > 1))
def test_a_gaussian_summed_up_in_batches_is_that_of_all_rows(seed: int, sizes: list[int]) -> None:
    rows = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)) * 5 + 100
    summed = RunningGaussian()
    for part in rows.split(sizes):
        summed.add(part)
    found = summed.gaussian()
    np.testing.assert_allclose(found.mu, rows.double().mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.sigma, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


# Inception Score


def splits(*parts: torch.Tensor) -> tuple[float, ...]:
    found = Splits(0)
    for part in parts:
        found.add(part)
    return found.scores()


def test_sure_predictions_spread_evenly_score_the_number_of_classes_and_unsure_ones_score_one() -> None:
    sure = torch.eye(8).repeat(5, 1) * 100
    assert splits(sure) == pytest.approx((8,))
    assert splits(torch.zeros(40, 8)) == pytest.approx((1,))
    assert splits(sure[:1].repeat(40, 1)) == pytest.approx((1,))  # sure, but always of one class


@given(SEEDS, st.integers(1, 60), st.floats(0.1, 30))
def test_the_inception_score_lies_between_one_and_the_number_of_classes(seed: int, count: int, scale: float) -> None:
    logits = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) * scale
    assert 1 - 1e-9 <= splits(logits)[0] <= 5 + 1e-9


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_splits_are_of_so_many_images_in_order_however_batches_fall(sizes: list[int]) -> None:
    logits = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(len(sizes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_predictions, "SPLIT", 5)
        found = splits(*logits.split(sizes))
        assert found == pytest.approx([splits(part)[0] for part in logits.split(5)])


# Precision and recall, nearest neighbours


def line(start: float, count: int) -> torch.Tensor:
    """Points a unit apart on a line: a ball to the third neighbour reaches two to three units far."""
    return torch.stack([start + torch.arange(count), torch.zeros(count)], 1)


def test_sets_apart_share_nothing_and_a_set_within_another_is_covered_by_it() -> None:
    assert precision_recall(line(0, 20), line(1000, 20), 3) == (0, 0)
    assert precision_recall(line(0, 20), line(0.25, 20), 3) == (1, 1)
    few_modes = precision_recall(line(0, 20), torch.cat([line(0, 20), line(1000, 60)]), 3)
    assert few_modes == pytest.approx((1, 0.25))  # what there is is good, but three quarters are missing
    half_noise = precision_recall(torch.cat([line(0, 20), line(1000, 20)]), line(0, 20), 3)
    assert half_noise == pytest.approx((0.5, 1))


@given(SEEDS, st.integers(5, 30), st.integers(5, 30), st.integers(1, 3))
def test_precision_and_recall_are_shares_and_change_places_with_the_sets(a: int, n: int, m: int, k: int) -> None:
    generator = torch.Generator().manual_seed(a)
    first, second = torch.randn(n, 3, generator=generator), torch.randn(m, 3, generator=generator) + 0.5
    precision, recall = precision_recall(first, second, k)
    assert 0 <= precision <= 1 and 0 <= recall <= 1
    assert precision_recall(second, first, k) == pytest.approx((recall, precision))


@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 7))
def test_the_nearest_is_the_nearest_however_it_is_blocked(seed: int, n: int, m: int, block: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(n, 3, generator=generator), torch.randn(m, 3, generator=generator)
    distances, indices = nearest(first, second, block)
    every = (first[:, None] - second[None]).norm(dim=-1)
    torch.testing.assert_close(distances, every.min(1).values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(every.gather(1, indices[:, None])[:, 0], every.min(1).values, rtol=1e-4, atol=1e-5)


# torch-fidelity's own results


class Tensors(TorchDataset[torch.Tensor]):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_they_agree_with_torch_fidelity_on_the_same_images(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    classifier = Classifier(6, 4, 8)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(2.5)
    weights = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_classifier(classifier, weights)
    space = classifier_space(weights, "test")
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, 256, (150, 3, 16, 16), dtype=torch.uint8, generator=generator)
    second = torch.randint(30, 220, (130, 3, 16, 16), dtype=torch.uint8, generator=generator)
    theirs = torch_fidelity.calculate_metrics(
        input1=Tensors(first),
        input2=Tensors(second),
        feature_extractor=CLASSIFIER,
        feature_extractor_weights_path=str(weights),
        feature_layer_fid="features",
        feature_layer_isc="logits",
        feature_layer_prc="features",
        fid=True,
        isc=True,
        prc=True,
        isc_splits=1,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    device = torch.device("cpu")
    one, other = (extract(MemoryImages(images), space, 32, device) for images in (first, second))
    ours = score(one, Reference.of(other), 3)
    assert ours.fid == pytest.approx(theirs["frechet_inception_distance"], abs=1e-3, rel=1e-3)
    assert ours.inception_score == pytest.approx(theirs["inception_score_mean"], abs=1e-3)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-3)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-3)
    assert theirs["frechet_inception_distance"] > 0.1
    assert 0 < min(theirs["precision"], theirs["recall"]) < 1
