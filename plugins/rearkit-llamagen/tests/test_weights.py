"""The published layouts: told from others, translated there and back with what else such files have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rearkit_llamagen import rearkit_components
from rearkit_llamagen.backbone import LlamaGenGPT
from rearkit_llamagen.blocks import LlamaGenGPTSettings
from rearkit_llamagen.tokenizer import LlamaGenVQ, LlamaGenVQSettings
from rearkit_llamagen.weights import LlamaGenGPTLayout, LlamaGenVQLayout
from torch import Tensor, nn

from rearkit.contracts import EXTRA, TokenSpace
from rearkit.testing import check_published

BACKBONE, TOKENIZER = "tiny_llamagen_ar", "tiny_llamagen_vq"
LAYOUTS: dict[str, Any] = {BACKBONE: LlamaGenGPTLayout(), TOKENIZER: LlamaGenVQLayout()}
# What a file has whose model was saved after it had sampled, with positions for more than 36 tokens.
TABLES = {
    "freqs_cis": torch.randn(50, 8, 2),
    "causal_mask": torch.ones(6, 50, 50, dtype=torch.bool),
    "layers.1.attention.kv_cache.k_cache": torch.randn(6, 4, 50, 16),
}


def build(name: str) -> nn.Module:
    if name == BACKBONE:
        settings = LlamaGenGPTSettings(hidden_size=64, num_layers=3, num_heads=4)
        return LlamaGenGPT(settings, TokenSpace(num_tokens=36, codebook_size=40, num_classes=7))
    sizes = {"hidden_channels": 32, "num_res_blocks": 1, "z_channels": 32, "codebook_size": 64}
    return LlamaGenVQ(LlamaGenVQSettings(image_size=12, channel_mult=(1, 2), **sizes))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "tables"), [(BACKBONE, {}), (BACKBONE, TABLES), (TOKENIZER, {})], ids=["gpt", "gpt with tables", "vq"]
)
def test_published_weights_translate_there_and_back(
    name: str, tables: dict[str, Tensor], reference: Callable[[str], Any]
) -> None:
    layout = LAYOUTS[name]
    published = {**reference(name).weights, **tables}
    assert layout.recognises(published)
    ours = layout.to_rearkit(published)
    assert same(layout.to_published(ours), published)
    assert same(layout.to_rearkit(layout.to_published(ours)), ours)
    extra = {key.removeprefix(EXTRA) for key in ours if key.startswith(EXTRA)}
    assert extra == (tables.keys() if name == BACKBONE else {"quantize.codebook_used"})
    assert {key for key in ours if not key.startswith(EXTRA)} == build(name).state_dict().keys()


def test_the_layouts_keep_their_contract(reference: Callable[[str], Any]) -> None:
    backbone, tokenizer = (
        next(c for c in rearkit_components() if c.kind == kind) for kind in ("backbone", "tokenizer")
    )
    gpt, vq = reference(BACKBONE), reference(TOKENIZER)
    sizes = gpt.sizes
    settings = LlamaGenGPTSettings(hidden_size=64, num_layers=3, num_heads=4)
    space = TokenSpace(sizes["num_tokens"], sizes["codebook_size"], sizes["num_classes"])
    check_published(backbone, gpt.weights | TABLES, settings, space)
    given = {"hidden_channels": 32, "num_res_blocks": 1, "z_channels": 32, "codebook_size": 64}
    check_published(tokenizer, vq.weights, LlamaGenVQSettings(image_size=12, channel_mult=(1, 2), **given))


def test_weights_tell_the_number_of_classes_where_the_images_are_not_there(reference: Callable[[str], Any]) -> None:
    case, layout = reference(BACKBONE), LAYOUTS[BACKBONE]
    sizes = layout.sizes(layout.to_rearkit(case.weights))
    assert (sizes["classes"], sizes["codebook of"]) == (case.sizes["num_classes"], case.sizes["codebook_size"])


@pytest.mark.parametrize("foreign", ["tiny", "tiny_maskgit_vqgan", "tiny_alitok_ar", "tiny_titok"])
def test_weights_of_other_models_are_not_recognised(foreign: str, reference: Callable[[str], Any]) -> None:
    weights = reference(foreign).weights
    assert not any(layout.recognises(weights) for layout in LAYOUTS.values())


def test_each_is_told_from_the_other_and_from_strange_names(reference: Callable[[str], Any]) -> None:
    for name, layout in LAYOUTS.items():
        (other,) = LAYOUTS.keys() - {name}
        assert not layout.recognises(reference(other).weights)
        for strange in ({}, {"": torch.zeros(())}, {"layers.": torch.zeros(2), "encoder.conv_blocks": torch.zeros(1)}):
            assert not layout.recognises(strange)
    text_conditional = {**reference(BACKBONE).weights, "cls_embedding.cap_proj.fc1.weight": torch.zeros(2, 2)}
    del text_conditional["cls_embedding.embedding_table.weight"]
    assert not LAYOUTS[BACKBONE].recognises(text_conditional)
