from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rearkit.data.decoding import Decoding
from rearkit.evaluation.batch_rows import rows_of
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.feature_spaces import FeatureSpace, classifier_space
from rearkit.evaluation.features import Features, collect, extract
from rearkit.evaluation.image_folders import FileImages
from rearkit.evaluation.image_streams import Images, MemoryImages, NpzImages
from rearkit.evaluation.shares import Share, ShareFiles

COUNT, SIDE = 23, 16
CPU = torch.device("cpu")


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=(COUNT, SIDE, SIDE, 3), dtype=np.uint8)


def in_memory(place: Path) -> Images:
    return MemoryImages(torch.from_numpy(pixels()).permute(0, 3, 1, 2))


def in_npz(place: Path) -> Images:
    np.savez(place / "x.npz", arr_0=pixels())
    return NpzImages.open(place / "x.npz")


def in_packed_npz(place: Path) -> Images:
    np.savez_compressed(place / "x.npz", arr_0=pixels())
    return NpzImages.open(place / "x.npz")


def in_files(place: Path) -> Images:
    (place / "files").mkdir()
    for number, image in enumerate(pixels()):
        Image.fromarray(image).save(place / "files" / f"{number:03d}.png")
    return FileImages.open(place / "files", Decoding(SIDE))


@given(st.integers(0, 40), st.integers(1, 12))
def test_shares_are_consecutive_and_about_equal(count: int, ranks: int) -> None:
    shares = [Share(index, ranks).among(range(count)) for index in range(ranks)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("source", [in_memory, in_npz, in_packed_npz, in_files])
@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_the_batches_of_all_shares_are_those_of_the_whole(
    ranks: int, source: Callable[[Path], Images], tmp_path: Path
) -> None:
    images = source(tmp_path)
    whole = list(images.batches(4))
    found = [part for index in range(ranks) for part in images.batches(4, Share(index, ranks))]
    assert [len(part) for part in found] == [len(part) for part in whole] == [4, 4, 4, 4, 4, 3]
    assert torch.equal(torch.cat(found), torch.from_numpy(pixels()).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> FeatureSpace:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_classifier(Classifier(3, 8, 6), path)
    return classifier_space(path, "test")


def same(first: Features, second: Features) -> bool:
    """Whether two are the same to the last bit."""
    one, other = (attrs.asdict(found) for found in (first, second))
    for name in ("features", "classes", "hashes"):
        assert torch.equal(one.pop(name), other.pop(name))
    for name in ("gaussian", "spatial"):
        for ours, theirs in zip(one.pop(name).values(), other.pop(name).values(), strict=True):
            assert np.array_equal(ours, theirs)
    return one == other


@pytest.mark.parametrize("ranks", [1, 2, 3, 40])
def test_features_put_together_are_the_same_to_the_last_bit(ranks: int, space: FeatureSpace, tmp_path: Path) -> None:
    images = in_memory(tmp_path)
    files = ShareFiles(tmp_path / "shares")
    for index in reversed(range(ranks)):
        share = Share(index, ranks)
        files.write("held-out images", rows_of(images, space, 2, CPU, "x", share), share)
    assert files.has("held-out images") and not files.has("samples")
    found = collect(files.read("held-out images"), COUNT, CPU)
    assert same(found, extract(images, space, 2, CPU))
    files.clear()
    files.clear()
    assert not files.has("held-out images")


def test_files_keep_the_order_of_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rearkit.evaluation.shares.BATCHES", 3)
    files = ShareFiles(tmp_path)
    for index in (1, 0):
        rows = ({"x": torch.tensor([100 * index + i]), "y": torch.zeros(2)} for i in range(35))
        files.write("samples", rows, Share(index, 2))
    found = list(files.read("samples"))
    assert [int(rows["x"]) for rows in found] == [*range(35), *range(100, 135)]
    assert all(rows.keys() == {"x", "y"} for rows in found)
