from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rearkit.data.pixels import VISIBLE, save_grid, save_pairs


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(("side", "shown"), [(32, 96), (40, 80), (96, 96), (200, 200)])
def test_small_images_are_enlarged_and_large_ones_kept(side: int, shown: int, tmp_path: Path) -> None:
    images = torch.zeros(6, 3, side, side, dtype=torch.uint8)
    for index in range(6):
        images[index] = 20 + 30 * index
    save_grid(tmp_path / "grid.png", images, 3)
    picture = read(tmp_path / "grid.png")
    assert picture.shape == (2 * (shown + 2) + 2, 3 * (shown + 2) + 2, 3)
    for index in range(6):
        top, left = 2 + (index // 3) * (shown + 2), 2 + (index % 3) * (shown + 2)
        assert (picture[top : top + shown, left : left + shown] == 20 + 30 * index).all()
    assert shown >= min(VISIBLE / 2, side)


def test_pixels_are_enlarged_without_blurring(tmp_path: Path) -> None:
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_grid(tmp_path / "grid.png", images, 1)
    picture = read(tmp_path / "grid.png")[2:98, 2:98]
    assert np.array_equal(picture[::3, ::3], images[0].permute(1, 2, 0).numpy())
    assert np.array_equal(picture, picture[::3, ::3].repeat(3, 0).repeat(3, 1))


def test_an_array_gives_the_picture_of_the_tensor(tmp_path: Path) -> None:
    images = torch.randint(256, (6, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_grid(tmp_path / "tensor.png", images, 3)
    save_grid(tmp_path / "array.png", images.permute(0, 2, 3, 1).numpy(), 3)
    assert (tmp_path / "array.png").read_bytes() == (tmp_path / "tensor.png").read_bytes()


def test_pairs_have_the_originals_above_and_the_decoded_below(tmp_path: Path) -> None:
    originals, decoded = torch.full((2, 3, 96, 96), 10, dtype=torch.uint8), torch.full((2, 3, 96, 96), 90).byte()
    save_pairs(tmp_path / "pairs.png", originals, decoded)
    picture = read(tmp_path / "pairs.png")
    assert (picture[2:98, 2:98] == 10).all()
    assert (picture[100:196, 100:196] == 90).all()
