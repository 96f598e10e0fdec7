from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from rearkit.evaluation import class_predictions
from rearkit.evaluation.features import Features
from rearkit.evaluation.fidelity import Fidelity
from rearkit.evaluation.gaussians import Gaussian
from rearkit.evaluation.sample_checks import Checked, warnings

ANY = Gaussian(np.zeros(1), np.eye(1))
SAMPLES = Features(
    torch.zeros(2, 1), ANY, ANY, (1.0,), 7.5, torch.zeros(2), torch.tensor([[0, 0], [0, 1]]), 0, 255, side=8
)
PROPER = Checked(
    samples=SAMPLES,
    labels=None,
    manifest=None,
    reference=None,
    reference_path=None,
    reference_manifest=None,
    fidelity=Fidelity(1.0, None, 1.0, 0.5, 0.5),
    published=False,
)


@pytest.mark.parametrize(
    ("precision", "recall", "expected"),
    [
        (0.0, 0.0, "no part of their manifolds in common"),
        (1.0, 0.0, "no image of the reference lies within the samples' manifold"),
        (0.0, 0.5, "no sample lies within the reference's manifold"),
    ],
)
def test_disjoint_manifolds_and_collapsed_samples_are_told_apart(
    precision: float, recall: float, expected: str
) -> None:
    fidelity = attrs.evolve(PROPER.fidelity, precision=precision, recall=recall)
    (found,) = warnings(attrs.evolve(PROPER, fidelity=fidelity))
    assert expected in found


@pytest.mark.parametrize("name", ["VIRTUAL_imagenet256_labeled.npz", "VIRTUAL_lsun_bedroom256.npz"])
def test_the_size_of_a_published_reference_without_images_is_known_by_its_name(name: str) -> None:
    given = attrs.evolve(PROPER, reference_path=Path(name))
    assert warnings(given) == [f"samples are of 8 pixels a side, the reference is called {name}"]
    fitting = attrs.evolve(given, samples=attrs.evolve(SAMPLES, side=256))
    assert warnings(fitting) == []
    assert warnings(attrs.evolve(PROPER, reference_path=Path("mine256.npz"))) == []


@pytest.mark.parametrize("by", ["arr_1", "their predicted classes"])
def test_a_set_in_class_order_is_told_with_what_it_does_to_the_inception_score(by: str) -> None:
    ordered = np.repeat(np.arange(4), 50)
    mixed = np.random.default_rng(0).permutation(ordered)

    def told(classes: np.ndarray) -> list[str]:
        if by == "arr_1":
            return warnings(attrs.evolve(PROPER, labels=classes))
        return warnings(attrs.evolve(PROPER, samples=attrs.evolve(SAMPLES, classes=torch.from_numpy(classes))))

    (found,) = told(ordered)
    assert f"in class order (by {by}): the Inception Score" in found and "FID does not" in found and "7.50" in found
    assert told(mixed) == told(np.tile(np.arange(4), 50)) == []


def test_the_score_on_a_permutation_is_that_of_a_mixed_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_predictions, "SPLIT", 50)
    logits_BC = 6 * torch.eye(4).repeat_interleave(50, 0) + torch.randn(200, 4, generator=torch.manual_seed(0))
    splits = class_predictions.Splits(200)
    for part in logits_BC.split(7):
        splits.add(part)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(class_predictions.PERMUTATION_SEED))
    # Image i is in the split that its place in the permutation falls into.
    again = class_predictions.Splits(200)
    again.add(logits_BC[order.argsort()])
    assert splits.permuted_score() == pytest.approx(np.mean(again.scores()))
    assert np.mean(splits.scores()) < 1.2 < 3 < splits.permuted_score()
