"""The published layouts: told from others, translated there and back, loaded with what else such files have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
from rearkit.errors import WeightsError
from rearkit.weights import convert, load_weights

BACKBONE, TOKENIZER = "tiny_llamagen_ar", "tiny_llamagen_vq"
LAYOUTS: dict[str, Any] = {BACKBONE: LlamaGenGPTLayout(), TOKENIZER: LlamaGenVQLayout()}
COMPONENTS = {component.published.__class__: component for component in rearkit_components()}


def build(name: str, **changed: Any) -> nn.Module:
    if name == BACKBONE:
        sizes = {"hidden_size": 64, "num_layers": 3, "num_heads": 4} | changed
        return LlamaGenGPT(LlamaGenGPTSettings(**sizes), TokenSpace(36, 40, 7))
    sizes = {"hidden_channels": 32, "num_res_blocks": 1, "z_channels": 32, "codebook_size": 64} | changed
    return LlamaGenVQ(LlamaGenVQSettings(image_size=12, channel_mult=(1, 2), **sizes))


def with_tables(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add what a file has whose model was saved after it had sampled, with positions for more than 36 tokens."""
    if name == TOKENIZER:
        return dict(weights)
    tables = {
        "freqs_cis": torch.randn(50, 8, 2),
        "causal_mask": torch.ones(6, 50, 50, dtype=torch.bool),
        "layers.1.attention.kv_cache.k_cache": torch.randn(6, 4, 50, 16),
    }
    return {**weights, **tables}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_weights_translate_there_and_back(name: str, reference: Callable[[str], Any]) -> None:
    layout = LAYOUTS[name]
    published = with_tables(name, reference(name).weights)
    assert layout.recognises(published)
    ours = layout.to_rearkit(published)
    assert same(layout.to_published(ours), published)
    assert same(layout.to_rearkit(layout.to_published(ours)), ours)
    own = {key: value for key, value in ours.items() if not key.startswith(EXTRA)}
    assert own.keys() == build(name).state_dict().keys()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in a trainer's checkpoint"])
def test_files_are_loaded_and_what_else_they_have_is_handed_on(
    name: str, wrapped: bool, reference: Callable[[str], Any], tmp_path: Path
) -> None:
    published, file = with_tables(name, reference(name).weights), tmp_path / "published.pt"
    torch.save({"model": published, "steps": 7} if wrapped else published, file)
    module = build(name)
    extra = load_weights(module, file, COMPONENTS[type(LAYOUTS[name])])
    assert extra.keys() == published.keys() - LAYOUTS[name].to_published(module.state_dict()).keys()
    assert len(extra) == (3 if name == BACKBONE else 1)
    assert same(LAYOUTS[name].to_published(module.state_dict()) | extra, published)


@pytest.mark.parametrize("name", LAYOUTS)
def test_convert_finds_out_whose_they_are(name: str, reference: Callable[[str], Any], tmp_path: Path) -> None:
    published = with_tables(name, reference(name).weights)
    source, ours, back = (tmp_path / f"{stem}.pt" for stem in ("source", "ours", "back"))
    torch.save({"model": published}, source)
    for origin, target, to in ((source, ours, "rearkit"), (ours, back, "published")):
        assert convert(origin, target, to, list(COMPONENTS.values())) is COMPONENTS[type(LAYOUTS[name])]
    assert same(torch.load(back, weights_only=True), published)


@pytest.mark.parametrize(
    ("name", "changed", "needed"),
    [
        (BACKBONE, {"num_layers": 2}, r"these weights need hidden_size = 64, num_layers = 3"),
        (TOKENIZER, {"z_channels": 16}, r"channel_mult = \[1, 2\], num_res_blocks = 1, z_channels = 32"),
    ],
)
def test_weights_of_other_sizes_are_refused_with_the_settings_that_they_need(
    name: str, changed: dict[str, int], needed: str, reference: Callable[[str], Any], tmp_path: Path
) -> None:
    torch.save(reference(name).weights, tmp_path / "published.pt")
    with pytest.raises(WeightsError, match=needed):
        load_weights(build(name, **changed), tmp_path / "published.pt", COMPONENTS[type(LAYOUTS[name])])


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
