"""The maps of a few samples, against what they are of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sharp import sharpened

from rearkit.errors import RearkitError
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.sampling.attention_maps import COLUMNS, WATCHED, AttentionWatch, sample_maps


def test_attention_is_added_up_as_torch_computes_it() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 6, 4)
    # One-hot values make attention's output its weights.
    v = torch.eye(6).expand(2, 3, 6, 6)
    with AttentionWatch([2, 5], 6) as watch:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
        F.scaled_dot_product_attention(q[:, :, :4], k[:, :, :4], v[:, :, :4], is_causal=True)
    assert watch.sum_BQT is not None
    torch.testing.assert_close(watch.sum_BQT, 2 * out.mean(1)[:, [2, 5]])


def test_maps_show_certainty_and_attention_where_they_are(model: Model) -> None:
    tokens = torch.randint(12, (2, 16), generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 3])
    images = torch.randint(256, (2, 8, 8, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pictures, names = sample_maps(model, images, tokens, classes)
    assert names == [*COLUMNS, *WATCHED]
    assert pictures.shape == (10, 3, 8, 8) and pictures.dtype == torch.uint8
    assert torch.equal(pictures[5], images[1].permute(2, 0, 1))
    with torch.no_grad():
        likeliest = model.backbone(tokens, classes)[0][:, :16].softmax(-1).amax(-1)
    # The brightest patch of the map is that of the surest token: the palette grows brighter from end to end.
    brightness = pictures[1].float().mean(0)[::2, ::2].flatten()
    assert brightness.argmax() == likeliest[0].argmax()
    # The last token is predicted before it is there, so nothing attends to it; the middle one sees half.
    dark = pictures[4].float().sum(0)[::2, ::2].flatten()
    assert dark[15] == dark.min()
    middle = pictures[3].float().sum(0)[::2, ::2].flatten()
    assert (middle[10:] == middle.min()).all() and middle[:10].max() > middle.min()


def test_maps_have_the_rows_and_columns_of_the_grid(tiny: Callable[..., Recipe]) -> None:
    model = sharpened(build(tiny(tokenizer={"image_size": [12, 8]})))
    assert model.space.grid == (6, 4)
    tokens = torch.randint(12, (1, 24), generator=torch.Generator().manual_seed(0))
    images = torch.zeros(1, 12, 8, 3, dtype=torch.uint8)
    pictures, _ = sample_maps(model, images, tokens, torch.tensor([0]))
    assert pictures.shape == (5, 3, 12, 8)
    with torch.no_grad():
        likeliest = model.backbone(tokens, torch.tensor([0]))[0][0, :24].softmax(-1).amax(-1)
    brightness = pictures[1].float().mean(0)[::2, ::2]
    assert divmod(int(likeliest.argmax()), 4) == divmod(int(brightness.flatten().argmax()), brightness.shape[1])
    # Of 6 rows, the middle token is in the fourth: nothing after it is seen.
    middle = pictures[3].float().sum(0)[::2, ::2].flatten()
    assert (middle[14:] == middle.min()).all() and middle[:14].max() > middle.min()


def test_tokens_without_places_have_no_maps(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model.tokenizer), "raster", False)
    with pytest.raises(RearkitError, match="maskgit-vqgan: its tokens have no places"):
        sample_maps(model, torch.zeros(1, 8, 8, 3), torch.zeros(1, 16, dtype=torch.int64), torch.tensor([0]))
