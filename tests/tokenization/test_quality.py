from __future__ import annotations

import math
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from rearkit.contracts import Tokenizer
from rearkit.data.image_sets import ImageSet
from rearkit.data.token_shards import TokenData
from rearkit.errors import DataError
from rearkit.tokenization import quality
from rearkit.tokenization.quality import (
    codebook_usage,
    compare,
    decode,
    module_device,
    rebuilt_psnr,
    show_decoded,
    survival,
)


class Greys(nn.Module):
    """Four patches, each a grey in 16 steps; ``shift`` breaks it by one code between encoding and decoding."""

    num_tokens, codebook_size, embedding_dim, image_size = 4, 16, 1, 4

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(float(shift)), requires_grad=False)

    def encode(self, images_B3RR: Tensor) -> Tensor:
        patches = images_B3RR.mean(1).unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2)).flatten(1)
        return (patches * 15).round().long()

    def decode(self, tokens_BN: Tensor) -> Tensor:
        greys = ((tokens_BN + int(self.shift)) % 16).float().div(15).view(-1, 1, 2, 2)
        return greys.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)

    def codebook(self) -> Tensor:
        return torch.arange(16.0)[:, None]


def dataset(count: int) -> tuple[Tensor, TokenData, ImageSet]:
    tokens = torch.randint(16, (count, 4), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 3
    pixels = (Greys().decode(tokens) * 255).round().to(torch.uint8)
    return tokens, TokenData.from_arrays(tokens, labels), ImageSet(pixels, labels)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_the_right_tokens_decode_to_their_images(batch: int, tmp_path: Path) -> None:
    tokens, data, images = dataset(10)
    assert compare(Greys(), data, images, batch, tmp_path / "grid.png") == pytest.approx(100, abs=1)
    assert rebuilt_psnr(Greys(), images.images.split(batch)).tolist() == pytest.approx([100] * 10)
    assert survival(Greys(), tokens, batch) == 1
    assert decode(Greys(), tokens, batch).shape == (10, 3, 4, 4)


def test_one_batch_of_decoded_images_is_kept_at_a_time() -> None:
    made: list[weakref.ref[Tensor]] = []

    class Watched(Greys):
        def decode(self, tokens_BN: Tensor) -> Tensor:
            assert sum(ref() is not None for ref in made) <= 1
            made.append(weakref.ref(found := super().decode(tokens_BN)))
            return found

    _, _, images = dataset(10)
    assert len(rebuilt_psnr(Watched(), images.images.split(2))) == 10 and len(made) == 5


def test_another_codebook_order_is_noticed(tmp_path: Path) -> None:
    tokens, data, images = dataset(10)
    assert survival(Greys(shift=1), tokens, 4) == 0
    assert compare(Greys(shift=8), data, images, 4, tmp_path / "grid.png") < 10


def test_classes_of_other_images_are_an_error(tmp_path: Path) -> None:
    tokens, _, images = dataset(10)
    data = TokenData.from_arrays(tokens, (images.labels + 1) % 3)
    with pytest.raises(DataError, match="classes in the token shards are not those of the images"):
        compare(Greys(), data, images, 4, tmp_path / "grid.png")


def test_pictures_show_originals_above_decoded_ones(tmp_path: Path) -> None:
    _, data, images = dataset(20)
    compare(Greys(), data, images, 4, tmp_path / "pairs.png")
    show_decoded(Greys(), data, tmp_path / "decoded.png")
    for name, rows in (("pairs.png", 2), ("decoded.png", 2)):
        width, height = Image.open(tmp_path / name).size
        assert (width - 2) // 98 == 16
        assert (height - 2) // 98 == rows


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=20))
def test_usage_and_perplexity_follow_their_definitions(rows: list[list[int]]) -> None:
    use, perplexity = codebook_usage(TokenData.from_arrays(np.array(rows), np.zeros(len(rows))), 10)
    flat = [token for row in rows for token in row]
    shares = [flat.count(token) / len(flat) for token in set(flat)]
    assert use == pytest.approx(len(set(flat)) / 10)
    assert perplexity == pytest.approx(math.exp(-sum(share * math.log(share) for share in shares)))
    assert 1 - 1e-9 <= perplexity <= len(set(flat)) + 1e-9


def test_usage_of_a_part_is_not_that_of_one_class_where_two_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "USAGE_SAMPLES", 11)
    rows = np.arange(21)[:, None] % 2
    assert codebook_usage(TokenData.from_arrays(rows, rows[:, 0]), 2)[0] == 1


def test_a_token_that_is_no_code_is_an_error() -> None:
    data = TokenData.from_arrays(np.array([[0, 1, 2, 16]]), np.zeros(1))
    assert codebook_usage(data, 17)[0] == pytest.approx(4 / 17)
    with pytest.raises(DataError, match="hold token 16, but the tokenizer has 16 codes"):
        codebook_usage(data, 16)


def test_a_tokenizer_may_have_buffers_alone_or_nothing() -> None:
    class Bare(Tokenizer):
        pass

    assert module_device(Bare()) == torch.device("cpu")
    held = Bare()
    held.register_buffer("codes", torch.zeros(2, device="meta"))
    assert module_device(held) == torch.device("meta")
