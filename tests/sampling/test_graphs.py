from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.contracts import TokenSpace
from rearkit.recipe.tables import SampleTable
from rearkit.sampling.graphs import GraphedBackbone
from rearkit.sampling.sampler import sample_tokens
from rearkit.sampling.stepping import Forced

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device, and there is none"),
]
SPACE = TokenSpace(num_tokens=12, codebook_size=20, num_classes=4)


def dit_ar() -> nn.Module:
    return DiTAR(DiTARSettings(hidden_size=64, num_layers=3, num_heads=4), SPACE)


def alitok_ar() -> nn.Module:
    backbone = pytest.importorskip("rearkit_alitok.backbone")
    settings = backbone.AliTokARSettings(hidden_size=64, num_layers=3, num_heads=4, prefix_tokens=3)
    return backbone.AliTokAR(settings, SPACE)


def llamagen_gpt() -> nn.Module:
    backbone = pytest.importorskip("rearkit_llamagen.backbone")
    settings = backbone.LlamaGenGPTSettings(hidden_size=64, num_layers=3, num_heads=4)
    return backbone.LlamaGenGPT(settings, SPACE)


@pytest.fixture(params=[dit_ar, alitok_ar, llamagen_gpt])
def module(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    module = request.param().cuda().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


@torch.no_grad()
def test_replayed_steps_are_the_steps(module: Any) -> None:
    graphed = GraphedBackbone(module, SPACE.num_tokens)
    for batch in (4, 4, 5):  # recorded, replayed, recorded anew
        classes = torch.randint(5, (batch,), device="cuda")
        tokens = torch.randint(20, (batch, 12), device="cuda")
        expected, _ = module(tokens, classes)
        logits, cache = graphed.start(classes)
        for i in range(SPACE.num_tokens):
            torch.testing.assert_close(logits, expected[:, i], rtol=1e-3, atol=1e-3)
            if i + 1 < SPACE.num_tokens:
                logits = graphed.step(tokens[:, i], cache)
    assert sorted(graphed.recordings) == [4, 5]


def test_sampled_tokens_are_the_same_with_graphs(module: Any) -> None:
    classes = torch.arange(4, device="cuda")
    uniforms = torch.from_numpy(np.random.default_rng(0).random((4, 12))).cuda()
    table = SampleTable(num_images=4, guidance_scale=3.0)
    plain = sample_tokens(module, classes, uniforms, 4, table)
    graphed = GraphedBackbone(module, SPACE.num_tokens)
    for _ in range(2):
        assert torch.equal(sample_tokens(graphed, classes, uniforms, 4, table), plain)


@torch.no_grad()
def test_given_tokens_are_read_by_replayed_steps(module: Any) -> None:
    """With more graphs than one batch: a given token must reach the recorded input, in both halves of guidance."""
    classes = torch.arange(4, device="cuda")
    uniforms = torch.from_numpy(np.random.default_rng(0).random((4, 12))).cuda()
    table = SampleTable(num_images=4, guidance_scale=3.0)
    graphed = GraphedBackbone(module, SPACE.num_tokens)
    for seed in (1, 2):
        generator = np.random.default_rng(seed)
        fixed = torch.from_numpy(np.where(generator.random((4, 12)) < 0.5, generator.integers(0, 20, (4, 12)), -1))
        found = []
        for decoder in (module, graphed):
            forced = Forced(decoder, fixed.cuda())
            found.append(forced.whole(sample_tokens(forced, classes, uniforms, 4, table)))
        assert torch.equal(*found)
        assert torch.equal(found[1].cpu()[fixed >= 0], fixed[fixed >= 0])
