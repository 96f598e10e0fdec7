"""The maps of a few samples, against what they are of."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rearkit.model import Model
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
