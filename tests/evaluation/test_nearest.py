from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.feature_spaces import classifier_space
from rearkit.evaluation.features import Features, extract
from rearkit.evaluation.image_streams import MemoryImages
from rearkit.evaluation.nearest import find_copies


def noise(count: int, seed: int) -> Tensor:
    return torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Tensor], Features]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_classifier(Classifier(3, 8, 16), path)
    return lambda images: extract(MemoryImages(images), classifier_space(path, "test"), 16, torch.device("cpu"))


def test_copies_are_found_shown_and_nearer_than_held_out_images(
    seen: Callable[[Tensor], Features], tmp_path: Path
) -> None:
    train, held_out, fresh = noise(30, 0), noise(20, 1), noise(12, 2)
    samples = torch.cat([fresh, train[[7, 3]], (train[[5]].int() + 1).clamp(max=255).to(torch.uint8)])

    def find(samples: Tensor) -> object:
        images = MemoryImages(samples), MemoryImages(train)
        return find_copies(seen(samples), seen(train), seen(held_out), "training images", images, tmp_path / "n.png")

    found = find(samples)
    assert found.identical == 2  # type: ignore[attr-defined]
    assert found.distance > 0.5 * found.held_out_distance  # type: ignore[attr-defined]
    with Image.open(tmp_path / "n.png") as opened:
        grid = np.asarray(opened)
    pitch = (grid.shape[0] - 2) // 4
    cells = [[grid[2 + r * pitch : (r + 1) * pitch, 2 + c * pitch : (c + 1) * pitch] for c in range(8)] for r in (2, 3)]
    same = [np.array_equal(*pair) for pair in zip(*cells, strict=True)]
    assert same == [True, True] + [False] * 6  # the nearest of all stand first, above what they copy
    assert (cells[0][0][6, 6] == train[[3, 7]][:, :, 0, 0].numpy()).all(1).any()

    memorized = find(train[:12])
    assert memorized.identical == 12 and memorized.distance < 0.1 * memorized.held_out_distance  # type: ignore[attr-defined]


def test_without_held_out_images_nothing_is_said_of_them(seen: Callable[[Tensor], Features], tmp_path: Path) -> None:
    few, train = noise(3, 2), noise(9, 0)
    found = find_copies(seen(few), seen(train), None, "x", (MemoryImages(few), MemoryImages(train)), tmp_path / "n.png")
    assert found.held_out_distance is None and found.shown == 3 and found.identical == 0


def test_real_images_of_another_size_are_shown_at_the_samples(
    seen: Callable[[Tensor], Features], tmp_path: Path
) -> None:
    few, train = noise(3, 2), noise(9, 0).repeat_interleave(2, 2).repeat_interleave(2, 3)
    find_copies(seen(few), seen(train), None, "x", (MemoryImages(few), MemoryImages(train)), tmp_path / "n.png")
    with Image.open(tmp_path / "n.png") as opened:
        assert opened.height == 4 * (opened.width - 2) // 3 + 2
