"""Scores against reference statistics, as ADM publishes them, agree with scores against the images themselves."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from rearkit.errors import RearkitError
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.feature_spaces import FeatureSpace, classifier_space
from rearkit.evaluation.features import Features, extract
from rearkit.evaluation.fidelity import Fidelity, Reference, read_reference, score
from rearkit.evaluation.image_streams import Images, MemoryImages


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (60, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def space(tmp_path: Path) -> FeatureSpace:
    torch.manual_seed(0)
    save_classifier(Classifier(3, 4, 6), tmp_path / "classifier.safetensors")
    return classifier_space(tmp_path / "classifier.safetensors", "test")


def seen(images: Images, space: FeatureSpace) -> Features:
    return extract(images, space, 16, torch.device("cpu"))


def against(images: Tensor, path: Path, space: FeatureSpace) -> Fidelity:
    reference, _ = read_reference(path).resolve(lambda found: seen(found, space))
    return score(seen(MemoryImages(images), space), reference, 3)


def test_statistics_of_a_set_score_as_the_set_itself(images: Tensor, space: FeatureSpace, tmp_path: Path) -> None:
    found = seen(MemoryImages(images[:40]), space)
    features = found.features.double().numpy()
    pool = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}
    spatial = {"mu_s": found.spatial.mu, "sigma_s": found.spatial.sigma}
    pixels = {"arr_0": images[:40].permute(0, 2, 3, 1).numpy()}
    direct = attrs.asdict(score(seen(MemoryImages(images[40:]), space), Reference.of(found), 3))
    assert None not in direct.values()
    parts = (("precision", "recall"), ("sfid",))
    for arrays, without in (
        (pool | spatial | pixels, ()),
        (pixels, ()),
        (pool | pixels, parts[1]),
        (pool | spatial, parts[0]),
        (pool, parts[0] + parts[1]),
    ):
        np.savez(tmp_path / "reference.npz", **arrays)
        result = attrs.asdict(against(images[40:], tmp_path / "reference.npz", space))
        assert {name for name, value in result.items() if value is None} == set(without)
        kept = [name for name in result if name not in without]
        assert [result[name] for name in kept] == pytest.approx([direct[name] for name in kept], rel=1e-6)


def test_statistics_of_another_feature_space_are_refused(images: Tensor, space: FeatureSpace, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(RearkitError, match=r"other\.npz: its .* 2048 features, .* has 6; .*--feature-weights"):
        against(images, tmp_path / "other.npz", space)


def test_a_file_without_statistics_or_images_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", tokens=np.zeros(3))
    with pytest.raises(RearkitError, match=r"none\.npz: no \.npz with mu and sigma, or with images.*tokens"):
        read_reference(tmp_path / "none.npz")
    np.savez(tmp_path / "flat.npz", arr_0=np.zeros(3, np.uint8))
    with pytest.raises(RearkitError, match=r"flat\.npz: arr_0 has the shape \(3,\)"):
        read_reference(tmp_path / "flat.npz")
