from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch

from rearkit.evaluation.features import Features, Gaussian
from rearkit.evaluation.fidelity import Fidelity
from rearkit.evaluation.sample_checks import Checked, warnings

ANY = Gaussian(np.zeros(1), np.eye(1))
SAMPLES = Features(torch.zeros(2, 1), ANY, ANY, (1.0,), torch.tensor([[0, 0], [0, 1]]), 0, 255, side=8)
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
