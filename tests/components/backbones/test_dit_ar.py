from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import Block, Condition, DiTARSettings
from rearkit.components.regularizers.codebook_embedding import CodebookEmbedding, CodebookEmbeddingSettings
from rearkit.contracts import Backbone, RegularizerContext, TokenSpace
from rearkit.errors import WeightsError
from rearkit.objective import Objective
from rearkit.registry import plugins
from rearkit.sampling.drawing import guidance_scales
from rearkit.weights import fit_state_dict, load_weights

AGREE = {"rtol": 0, "atol": 1e-4}


def backbone_of(sizes: Mapping[str, Any]) -> DiTAR:
    return DiTAR(
        DiTARSettings(
            hidden_size=sizes["hidden_size"],
            num_layers=sizes["num_layers"],
            num_heads=sizes["num_heads"],
            mlp_size=sizes["mlp_size"],
        ),
        TokenSpace(sizes["num_tokens"], sizes["codebook_size"], sizes["num_classes"]),
    )


def published_backbone(case: Any) -> DiTAR:
    module = backbone_of(case.sizes)
    load_weights(module, case.weights, plugins.find("backbone", "dit-ar"))
    return module.eval()


def published_objective(case: Any) -> Objective:
    sizes = case.sizes
    regularizer = CodebookEmbedding(
        CodebookEmbeddingSettings(
            encode_layer=sizes["encode_layer"],
            decode_layer=sizes["decode_layer"],
            projection_dim=sizes["projection_dim"],
            weight=sizes["weight"],
        ),
        RegularizerContext(sizes["hidden_size"], sizes["num_layers"], case["codebook"]),
    )
    # What a published checkpoint holds besides the backbone: the heads, and the tables' spare rows.
    extra = load_weights(backbone_of(sizes), case.weights, plugins.find("backbone", "dit-ar"))
    heads = {key: value for key, value in extra.items() if "_head." in key}
    fit_state_dict(regularizer, heads, "the published heads")
    return Objective({"codebook-embedding": regularizer})


@pytest.fixture(scope="module")
def case(reference: Callable[[str], Any]) -> Any:
    return reference("tiny")


@pytest.fixture(scope="module")
def backbone(case: Any) -> DiTAR:
    return published_backbone(case)


# Above C + 1 samples, modulations are computed once a class and gathered; below, once a sample.
@pytest.mark.parametrize("copies", [1, 5], ids=["modulated by sample", "modulated by class"])
@torch.no_grad()
def test_logits_agree_with_the_published_code(case: Any, backbone: DiTAR, copies: int) -> None:
    tokens, classes = case["tokens"].repeat(copies, 1), case["classes"].repeat(copies)
    count = len(case["tokens"])
    assert (len(tokens) > backbone.space.num_classes + 1) == (copies > 1)
    clean, _ = backbone(tokens, classes)
    torch.testing.assert_close(clean[:count], case["clean_logits"], **AGREE)
    torch.testing.assert_close(clean[-count:], case["clean_logits"], **AGREE)
    dropped, _ = backbone(tokens, torch.full_like(classes, backbone.space.num_classes))
    torch.testing.assert_close(dropped[:count], case["uncond_logits"], **AGREE)
    noisy, _ = backbone(case["noisy_tokens"].repeat(copies, 1), classes)
    torch.testing.assert_close(noisy[:count], case["noisy_logits"], **AGREE)


@pytest.mark.parametrize("context", ["clean", "noisy"])
@torch.no_grad()
def test_projections_of_the_hidden_states_agree_with_the_published_code(
    case: Any, backbone: DiTAR, context: str
) -> None:
    (regularizer,) = published_objective(case).regularizers.values()
    tokens = case["tokens" if context == "clean" else "noisy_tokens"]
    _, hidden = backbone(tokens, case["classes"], regularizer.layers)
    encode_z = regularizer.encode_head(hidden[case.sizes["encode_layer"]])
    decode_z = regularizer.decode_head(hidden[case.sizes["decode_layer"]])
    torch.testing.assert_close(encode_z, case[f"{context}_encode_z"], **AGREE)
    torch.testing.assert_close(decode_z, case[f"{context}_decode_z"], **AGREE)


@pytest.mark.parametrize("context", ["clean", "noisy"])
@torch.no_grad()
def test_losses_agree_with_the_published_code(case: Any, backbone: DiTAR, context: str) -> None:
    objective = published_objective(case)
    tokens = case["tokens" if context == "clean" else "noisy_tokens"]
    replaced = case["noisy_mask"] if context == "noisy" else torch.zeros_like(case["noisy_mask"])
    logits, hidden = backbone(tokens, case["classes"], objective.layers)
    loss = objective(logits, hidden, case["tokens"], replaced.bool(), backbone.prefix_length)
    regularizer_loss = sum(value for name, value in loss.parts.items() if name.startswith("regularizer/"))
    torch.testing.assert_close(loss.parts["cross_entropy"], case[f"{context}_ar_loss"], **AGREE)
    torch.testing.assert_close(regularizer_loss, case[f"{context}_reg_loss"], **AGREE)
    torch.testing.assert_close(loss.total, case[f"{context}_loss"], **AGREE)
    expected = (case[f"{context}_logits"][:, :-1].argmax(-1) == case["tokens"]).float().mean()
    assert loss.parts["accuracy"] == expected


@torch.no_grad()
def test_cached_decoding_with_guidance_agrees_with_the_published_code(case: Any, backbone: DiTAR) -> None:
    tokens, classes = case["tokens"], case["classes"]
    scales = guidance_scales(tokens.shape[1], case.sizes["guidance_scale"], case.sizes["guidance_power"])
    torch.testing.assert_close(torch.tensor(scales), case["guidance_scales"], check_dtype=False, **AGREE)
    logits, cache = backbone.start(torch.cat([classes, torch.full_like(classes, backbone.space.num_classes)]))
    for i, scale in enumerate(scales):
        conditional, unconditional = logits.chunk(2)
        guided = unconditional + (conditional - unconditional) * scale
        torch.testing.assert_close(guided, case["guided_logits"][:, i], **AGREE)
        logits = backbone.step(tokens[:, i].repeat(2), cache)


def test_published_weights_lose_their_spare_rows_and_heads_and_keep_all_else(case: Any, backbone: DiTAR) -> None:
    published = load_file(case.weights)
    places = backbone.prefix_length + backbone.space.num_tokens
    assert published["pos_embed"].shape[1] > places  # or this test shows nothing
    assert any("align_mlp" in key for key in published)
    for key, value in backbone.state_dict().items():
        expected = published[key][:, :places] if published[key].shape != value.shape else published[key]
        torch.testing.assert_close(value, expected, rtol=0, atol=0, msg=key)


def test_tables_of_an_unexpected_length_are_refused_by_name(case: Any, backbone: DiTAR, tmp_path: Any) -> None:
    published = load_file(case.weights)
    published["pos_embed"] = published["pos_embed"][:, :-1].contiguous()
    save_file(published, tmp_path / "short.safetensors")
    with pytest.raises(WeightsError, match="pos_embed"):
        load_weights(backbone, tmp_path / "short.safetensors", plugins.find("backbone", "dit-ar"))


def test_own_weights_load_again_through_the_published_translation(backbone: DiTAR, tmp_path: Any) -> None:
    save_file(backbone.state_dict(), tmp_path / "own.safetensors")
    fresh = DiTAR(DiTARSettings(hidden_size=32, num_layers=4, num_heads=4, mlp_size=128), backbone.space)
    load_weights(fresh, tmp_path / "own.safetensors", plugins.find("backbone", "dit-ar"))
    for key, value in fresh.state_dict().items():
        torch.testing.assert_close(value, backbone.state_dict()[key], rtol=0, atol=0)


@st.composite
def small_backbones(draw: st.DrawFn) -> tuple[DiTAR, Tensor, Tensor]:
    """A backbone with all weights random (fresh ones have their blocks shut), and a batch for it."""
    heads = draw(st.integers(1, 3))
    settings = DiTARSettings(
        hidden_size=heads * draw(st.integers(1, 8)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        mlp_size=draw(st.none() | st.integers(1, 20)),
    )
    space = TokenSpace(draw(st.integers(1, 9)), draw(st.integers(2, 12)), draw(st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    module = DiTAR(settings, space).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    # Batches on both sides of the number of classes: modulations are made once a sample, or once a class.
    batch = draw(st.integers(1, 2 * space.num_classes + 4))
    tokens = torch.randint(space.codebook_size, (batch, space.num_tokens), generator=generator)
    classes = torch.randint(space.num_classes + 1, (batch,), generator=generator)
    return module, tokens, classes


@given(small_backbones())
@torch.no_grad()
def test_cached_decoding_equals_full_recomputation(drawn: tuple[DiTAR, Tensor, Tensor]) -> None:
    module, tokens, classes = drawn
    full, _ = module(tokens, classes)
    logits, cache = module.start(classes)
    for i in range(module.space.num_tokens):
        torch.testing.assert_close(logits, full[:, i], rtol=0, atol=1e-5)
        logits = module.step(tokens[:, i], cache)
    torch.testing.assert_close(logits, full[:, -1], rtol=0, atol=1e-5)


@given(small_backbones(), st.data())
@torch.no_grad()
def test_a_token_reaches_only_the_logits_behind_it(drawn: tuple[DiTAR, Tensor, Tensor], data: st.DataObject) -> None:
    module, tokens, classes = drawn
    place = data.draw(st.integers(0, module.space.num_tokens - 1))
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % module.space.codebook_size
    layers = range(module.num_layers)
    (before, hidden_before), (after, hidden_after) = module(tokens, classes, layers), module(changed, classes, layers)
    torch.testing.assert_close(before[:, : place + 1], after[:, : place + 1], rtol=0, atol=1e-6)
    for layer in layers:
        own_place = module.prefix_length + place
        torch.testing.assert_close(
            hidden_before[layer][:, :own_place], hidden_after[layer][:, :own_place], rtol=0, atol=1e-6
        )
        if module.hidden_size > module.num_heads:  # a head one wide is normalised to a constant
            assert not torch.equal(hidden_before[layer][:, own_place], hidden_after[layer][:, own_place])


@given(small_backbones(), st.data())
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(drawn: tuple[DiTAR, Tensor, Tensor], data: st.DataObject) -> None:
    module, tokens, classes = drawn
    full, _ = module(tokens, classes)
    row = data.draw(st.integers(0, len(tokens) - 1))
    alone, _ = module(tokens[row : row + 1], classes[row : row + 1])
    torch.testing.assert_close(alone[0], full[row], rtol=0, atol=1e-5)


@given(small_backbones())
def test_gradients_do_not_depend_on_how_modulations_are_computed(drawn: tuple[DiTAR, Tensor, Tensor]) -> None:
    module, tokens, classes = drawn
    weights = torch.randn(module.space.codebook_size, generator=torch.Generator().manual_seed(0))

    def gradients(batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        module.zero_grad()
        for part, labels in batches:
            (module(part, labels)[0] @ weights).sum().backward()
        return [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]

    whole = gradients([(tokens, classes)])
    one_by_one = gradients([(tokens[i : i + 1], classes[i : i + 1]) for i in range(len(tokens))])
    for together, apart in zip(whole, one_by_one, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


def test_gradients_of_a_batch_have_the_same_bits_each_time_on_two_threads(restored_threads: None) -> None:
    """With few classes, so that rows of modulations get gradients from many samples."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    module = DiTAR(DiTARSettings(hidden_size=128, num_layers=1, num_heads=4, dropout=0.0), TokenSpace(64, 128, 10))
    for parameter in module.parameters():  # a fresh block is shut
        torch.nn.init.normal_(parameter, std=0.02)
    tokens, classes = torch.randint(128, (32, 64)), torch.randint(10, (32,))
    found = set()
    for _ in range(8):
        module.zero_grad()
        torch.manual_seed(1)
        module(tokens, classes)[0].square().sum().backward()
        found.add(module.blocks[0].adaLN_modulation[1].weight.grad.numpy().tobytes())
    assert len(found) == 1


@torch.no_grad()
def test_the_class_and_the_dropped_label_change_the_logits(case: Any, backbone: DiTAR) -> None:
    tokens = case["tokens"][:1]
    logits = [backbone(tokens, torch.tensor([label]))[0] for label in range(backbone.space.num_classes + 1)]
    for i, first in enumerate(logits):
        for second in logits[i + 1 :]:
            assert not torch.allclose(first, second, atol=1e-3)


def test_hidden_states_come_for_the_layers_asked_for_with_the_contracts_shapes(case: Any, backbone: DiTAR) -> None:
    assert isinstance(backbone, Backbone)
    logits, hidden = backbone(case["tokens"], case["classes"], (1, 3))
    B, N = case["tokens"].shape
    assert logits.shape == (B, N + 1, backbone.space.codebook_size)
    assert sorted(hidden) == [1, 3]
    assert hidden[1].shape == (B, backbone.prefix_length + N, backbone.hidden_size)
    assert backbone(case["tokens"], case["classes"])[1] == {}


def test_a_fresh_backbone_has_its_blocks_shut_and_predicts_near_uniformly() -> None:
    module = DiTAR(DiTARSettings(hidden_size=16, num_layers=2, num_heads=2), TokenSpace(4, 6, 3)).eval()
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    logits, hidden = module(tokens, torch.tensor([0, 3]), (0, 1))
    torch.testing.assert_close(hidden[0], hidden[1], rtol=0, atol=0)
    assert (logits.softmax(-1) - 1 / 6).abs().max() < 0.1


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    settings = DiTARSettings(hidden_size=16, num_layers=1, num_heads=2, dropout=0.5, attention_dropout=0.5)
    module = DiTAR(settings, TokenSpace(4, 6, 3))
    torch.nn.init.normal_(module.blocks[0].adaLN_modulation[1].bias)
    torch.nn.init.normal_(module.adaln_before_head.adaLN_modulation[1].bias)
    tokens, classes = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0, 1])
    assert not torch.equal(module(tokens, classes)[0], module(tokens, classes)[0])
    module.eval()
    torch.testing.assert_close(module(tokens, classes)[0], module(tokens, classes)[0], rtol=0, atol=0)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        DiTARSettings(hidden_size=10, num_heads=3)


def test_the_default_sizes_have_the_parameters_that_the_published_layout_implies() -> None:
    space = TokenSpace(256, 1024, 1000)
    with torch.device("meta"):
        small = DiTAR(DiTARSettings(), space)
    per_block = 768 * 768 * (3 + 1 + 4 + 4 + 6) + 768 * (3 + 1 + 4 + 1 + 6) + 4 * 768 + 4 * 48
    tables = 3 * 258 * 768 + 768 + (1024 + 1 + 1000 + 1) * 768
    head = 2 * (768 * 768 + 768) + 1024 * (768 + 1)
    assert sum(parameter.numel() for parameter in small.parameters()) == 20 * per_block + tables + head


def test_a_compiled_block_with_dropout_views_no_bool_as_a_number() -> None:
    """Triton, which compiles for CUDA, has no such view."""
    viewed: list[object] = []

    def look(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        viewed.extend(node for node in module.graph.nodes if torch.int8 in node.args)
        seen.append(module)
        return module.forward

    seen: list[torch.fx.GraphModule] = []
    block = Block(DiTARSettings(hidden_size=16, num_layers=1, num_heads=2, dropout=0.1)).train()
    x_BTD = torch.randn(2, 5, 16)
    torch.compile(block.forward, backend=look, fullgraph=True)(x_BTD, Condition(x_BTD, None))
    assert seen and not viewed
