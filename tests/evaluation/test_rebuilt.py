from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rearkit
from rearkit.contracts import Tokenizer
from rearkit.data.pixels import to_float
from rearkit.errors import DataError, RearkitError
from rearkit.evaluation.rebuilt import code_colours
from rearkit.model import build_tokenizer
from rearkit.recipe.tables import Recipe


@pytest.fixture(scope="module")
def tokenizer(tiny: Callable[..., Recipe]) -> Tokenizer:
    made = build_tokenizer(tiny()).eval()
    with torch.no_grad():
        made.codebook().copy_(torch.randn(12, 6, generator=torch.Generator().manual_seed(0)))
    return made


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_it_is_what_the_tokenizer_makes_of_each_photo(tokenizer: Tokenizer, photos: Tensor) -> None:
    found = rearkit.reconstruct(tokenizer, photos)
    for photo, one in zip(photos, found, strict=True):
        with torch.no_grad():
            tokens = tokenizer.encode(to_float(photo[None]))
            decoded = (tokenizer.decode(tokens)[0] * 255).round().to(torch.uint8)
        assert torch.equal(one.original, photo)
        assert torch.equal(one.tokens, tokens[0])
        assert torch.equal(one.reconstruction, decoded)
        error = (decoded.double() - photo.double()).pow(2).mean()
        assert one.psnr == pytest.approx(10 * torch.log10(255**2 / error).item(), abs=1e-3)
        assert -1 <= one.ssim < 1
        apart = decoded.int() - photo.int()
        assert torch.equal(one.difference, (128 + apart / 2).round().clamp(0, 255).to(torch.uint8))


def test_fields_of_the_token_picture_are_of_one_colour_a_code(tokenizer: Tokenizer, photos: Tensor) -> None:
    one = rearkit.reconstruct(tokenizer, photos[:1])[0]
    assert one.token_picture.shape == (3, 8, 8)
    fields = one.token_picture.reshape(3, 4, 2, 4, 2)
    assert torch.equal(fields, fields[:, :, :1, :, :1].expand_as(fields))
    colours = fields[:, :, 0, :, 0].flatten(1).T
    for i in range(16):
        for j in range(16):
            assert torch.equal(colours[i], colours[j]) == (one.tokens[i] == one.tokens[j])


def test_the_token_picture_has_the_rows_and_columns_of_the_grid(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    tall = build_tokenizer(tiny(tokenizer={"image_size": [12, 4]})).eval()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 12, 3), np.uint8)).save(tmp_path / "a.png")
    one = rearkit.reconstruct(tall, [tmp_path / "a.png"])[0]
    assert all(picture.shape == (3, 12, 4) for picture in one.pictures.values())
    fields = one.token_picture.reshape(3, 6, 2, 2, 2)
    assert torch.equal(fields, fields[:, :, :1, :, :1].expand_as(fields))
    colours = code_colours(tall.codebook().detach())[one.tokens]
    assert torch.equal(fields[:, :, 0, :, 0].flatten(1).T, colours)


def test_like_codes_have_like_colours_in_few_dimensions_too() -> None:
    line = torch.tensor([[0.0], [3.0], [1.0], [2.0]])
    assert code_colours(line)[:, 0].tolist() == [0, 255, 85, 170]
    assert code_colours(line)[:, 1:].max() == 0
    codes = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert len(code_colours(codes).unique(dim=0)) == 50


def test_files_become_squares(tokenizer: Tokenizer, photos: Tensor, tmp_path: Path) -> None:
    Image.fromarray(photos[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "b.jpg")
    first, second = rearkit.reconstruct(tokenizer, [tmp_path / "a.png", str(tmp_path / "b.jpg")])
    assert torch.equal(first.original, photos[0]) and second.original.max() == 0
    with pytest.raises(RearkitError, match=r"gone\.png: no such image"):
        rearkit.reconstruct(tokenizer, [tmp_path / "gone.png"])


def test_one_path_and_floats_are_refused(tokenizer: Tokenizer, photos: Tensor) -> None:
    with pytest.raises(RearkitError, match=r"a list of photos; for one, give \['one\.png'\]"):
        rearkit.reconstruct(tokenizer, "one.png")
    with pytest.raises(DataError, match=r"must be .* uint8, from 0 to 255; found float32"):
        rearkit.reconstruct(tokenizer, to_float(photos))
