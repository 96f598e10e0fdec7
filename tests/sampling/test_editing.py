"""A photo of which a part is kept, on the tiny model: a grid of 4 × 4 tokens, each of 2 × 2 pixels."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sharp import sharpened
from torch import Tensor
from torch.nn.functional import max_pool2d

from rearkit.errors import RearkitError
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.sampling.editing import blend, edit, given_tokens, known_tokens
from rearkit.sampling.sampler import Sampler


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def kept(*box: int) -> Tensor:
    left, top, right, bottom = box
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_token_is_known_if_its_whole_patch_is_kept(model: Model) -> None:
    found = known_tokens(model, kept(0, 0, 8, 3)).reshape(4, 4)
    assert found[0].all() and not found[1:].any()


@pytest.mark.parametrize(("box", "message"), [((1, 1, 3, 3), "no patch of 2 × 2"), ((0, 0, 8, 8), "nothing is to be")])
def test_nothing_to_keep_or_to_draw_is_refused(box: tuple[int, ...], message: str, model: Model) -> None:
    with pytest.raises(RearkitError, match=message):
        known_tokens(model, kept(*box))


def test_tokens_without_places_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.tokenizer), "raster", False)
    with pytest.raises(RearkitError, match=r"\[tokenizer\] maskgit-vqgan: its tokens have no places"):
        known_tokens(model, kept(0, 0, 8, 4))


def test_kept_pixels_come_back_and_alternatives_differ(model: Model, photo: Tensor) -> None:
    mask = kept(0, 0, 8, 5)  # half of the third row of patches is kept, too: its tokens are drawn, its pixels given
    classes = [3, 3, 3, 7]
    images = edit(Sampler(model), photo, mask, classes, [0, 1, 2, 0], fade=0)
    assert images.shape == (4, 8, 8, 3) and images.dtype == np.uint8
    for image in images:
        assert np.array_equal(image[:5], photo.permute(1, 2, 0).numpy()[:5])
    assert len(np.unique(images.reshape(4, -1), axis=0)) == 4
    # Each by itself is the same.
    assert np.array_equal(edit(Sampler(model), photo, mask, [7], [0], fade=0)[0], images[3])


def test_more_pixels_to_fade_over_than_there_are_is_refused(model: Model, photo: Tensor) -> None:
    with pytest.raises(RearkitError, match="fade: 9 pixels, but the image's longer side has 8"):
        edit(Sampler(model), photo, kept(0, 0, 8, 5), [3], fade=9)
    assert len(edit(Sampler(model), photo, kept(0, 0, 8, 5), [3], fade=8)) == 1


def test_a_photo_that_is_no_square_is_edited(tiny: Callable[..., Recipe]) -> None:
    model = sharpened(build(tiny(tokenizer={"image_size": [8, 12]})))
    photo = torch.randint(0, 256, (3, 8, 12), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:, :7] = True  # three columns of patches, and half of the fourth one
    known = known_tokens(model, mask).reshape(4, 6)
    assert known[:, :3].all() and not known[:, 3:].any()
    sampler = Sampler(model)
    images = edit(sampler, photo, mask, [3, 7], fade=0)
    assert images.shape == (2, 8, 12, 3)
    assert (images[:, :, :7] == photo.permute(1, 2, 0).numpy()[:, :7]).all()
    given, _ = given_tokens(sampler, photo, mask)
    (part,) = sampler.stream([3, 7], given=given, known=known.flatten())
    assert (part.tokens.reshape(2, 4, 6)[:, :, :3] == given.reshape(4, 6)[:, :3].numpy()).all()
    assert (part.images[:, :, 7:] == images[:, :, 7:]).all()


def test_kept_pixels_fade_towards_those_that_are_drawn() -> None:
    photo = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    images = np.zeros((1, 8, 8, 3), np.uint8)
    rows = blend(images, photo, kept(0, 0, 8, 5), 3)[0, :, 0, 0]
    assert rows.tolist() == [200, 200, 150, 100, 50, 0, 0, 0]
    assert blend(images, photo, kept(0, 0, 8, 5), 0)[0, :, 0, 0].tolist() == [200] * 5 + [0] * 3


@pytest.mark.parametrize("fade", [0, 1, 2, 3, 7, 8])
def test_a_fade_is_the_mean_of_what_is_left_at_each_width(fade: int, photo: Tensor) -> None:
    mask = kept(0, 0, 8, 5) | kept(2, 7, 3, 8)
    shrunk = [1 - max_pool2d((~mask)[None].float(), 2 * width + 1, 1, width) for width in range(fade + 1)]
    weight = torch.stack(shrunk).mean(0).permute(1, 2, 0).numpy()
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    mixed = weight * photo.permute(1, 2, 0).numpy().astype(np.float32) + (1 - weight) * images
    assert np.array_equal(blend(images, photo, mask, fade), np.rint(mixed).astype(np.uint8))


def test_a_long_fade_is_quick() -> None:
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[:200] = True
    began = time.process_time()
    blend(np.zeros((1, 256, 256, 3), np.uint8), torch.zeros(3, 256, 256, dtype=torch.uint8), mask, 128)
    assert time.process_time() - began < 3
