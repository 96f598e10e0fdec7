"""Nothing on a CPU is mixed with what is on a GPU: under torch's fake tensors, which know devices and need none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANSettings
from rearkit.contracts import TokenSpace
from rearkit.layers import cached_attention

PLUGINS = Path(__file__).parents[1] / "plugins"
SPACE = TokenSpace(num_tokens=12, codebook_size=20, num_classes=4)
SMALL = {"hidden_size": 64, "num_layers": 2, "num_heads": 4}


def dit_ar() -> Any:
    return DiTAR(DiTARSettings(**SMALL), SPACE)


def alitok_ar() -> Any:
    backbone = importlib.import_module("rearkit_alitok.backbone")
    return backbone.AliTokAR(backbone.AliTokARSettings(**SMALL, prefix_tokens=3), SPACE)


def llamagen_gpt() -> Any:
    backbone = importlib.import_module("rearkit_llamagen.backbone")
    return backbone.LlamaGenGPT(backbone.LlamaGenGPTSettings(**SMALL), SPACE)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    # A kernel of Triton is no operator of torch; the products that stand in for it are.
    monkeypatch.setattr(cached_attention, "has_working_triton", lambda: False)
    for name in ("rearkit-alitok", "rearkit-llamagen"):
        monkeypatch.syspath_prepend(str(PLUGINS / name))

    # It looks at what it has drawn, and nothing has content here.
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, **options: tensor)

    def placed(make: Callable[[], nn.Module]) -> Any:
        with torch.device("cuda"):
            return make()

    with FakeTensorMode():
        yield placed


@pytest.mark.parametrize("make", [dit_ar, alitok_ar, llamagen_gpt])
def test_backbones_train_and_decode_where_they_are(make: Any, fake_gpu: Any) -> None:
    module = fake_gpu(make)
    tokens, classes = torch.zeros(3, 12, dtype=torch.int64).cuda(), torch.zeros(3, dtype=torch.int64).cuda()
    logits, hidden = module.train()(tokens, classes, (0,))
    assert logits.device.type == hidden[0].device.type == "cuda"
    with torch.no_grad():
        first, cache = module.eval().start(classes)
        following = module.step(tokens[:, 0], cache)
    assert first.device.type == following.device.type == "cuda"


def test_a_tokenizer_encodes_and_decodes_where_it_is(fake_gpu: Any) -> None:
    sizes = {"image_size": 16, "hidden_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
    settings = MaskGITVQGANSettings(**sizes, codebook_size=32, embedding_dim=8)
    tokenizer = fake_gpu(lambda: MaskGITVQGAN(settings)).eval()
    images = torch.rand(2, 3, 16, 16).cuda()
    assert tokenizer.decode(tokenizer.encode(images)).device.type == "cuda"


def test_a_mixture_is_found(fake_gpu: Any) -> None:
    module = fake_gpu(dit_ar)
    with pytest.raises(Exception, match="device"):
        module(torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, dtype=torch.int64).cuda())
