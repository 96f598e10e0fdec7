from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rearkit_alitok import rearkit_components
from rearkit_alitok.backbone import AliTokAR
from rearkit_alitok.blocks import AliTokARSettings
from rearkit_alitok.rotary import rotary_table, rotate

import rearkit
from rearkit.contracts import RegularizerContext, TokenSpace, num_parameters
from rearkit.testing import check_backbone, check_component, check_published, check_settings

AGREE = {"rtol": 0, "atol": 1e-4}
(COMPONENT,) = (component for component in rearkit_components() if component.kind == "backbone")
TINY = AliTokARSettings(hidden_size=16, num_layers=2, num_heads=2, prefix_tokens=2)


@pytest.fixture(scope="module")
def case(reference: Callable[[str], Any]) -> Any:
    return reference("tiny_alitok_ar")


@pytest.fixture(scope="module")
def backbone(case: Any) -> AliTokAR:
    sizes = case.sizes
    module = AliTokAR(
        AliTokARSettings(**{name: sizes[name] for name in ("hidden_size", "num_layers", "num_heads", "prefix_tokens")}),
        TokenSpace(sizes["num_tokens"], sizes["codebook_size"], sizes["num_classes"]),
    )
    module.load_state_dict(case.weights)
    return module.eval()


@torch.no_grad()
def test_logits_agree_with_the_published_code(case: Any, backbone: AliTokAR) -> None:
    no_label = torch.full_like(case["classes"], case.sizes["num_classes"])
    torch.testing.assert_close(backbone(case["tokens"], case["classes"])[0], case["clean_logits"], **AGREE)
    torch.testing.assert_close(backbone(case["tokens"], no_label)[0], case["uncond_logits"], **AGREE)
    assert (case["clean_logits"] - case["uncond_logits"])[:, :-1].abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_guided_logits_of_cached_decoding_agree_with_the_published_code(case: Any, backbone: AliTokAR) -> None:
    no_label = torch.full_like(case["classes"], case.sizes["num_classes"])
    logits, cache = backbone.start(torch.cat([case["classes"], no_label]))
    guided = []
    for i, scale in enumerate(case["guidance_scales"]):
        conditional, unconditional = logits.chunk(2)
        guided.append(unconditional + (conditional - unconditional) * scale)
        if i + 1 < len(case["guidance_scales"]):
            logits = backbone.step(case["tokens"][:, i].repeat(2), cache)
    torch.testing.assert_close(torch.stack(guided, 1), case["guided_logits"], **AGREE)


def test_a_cast_leaves_the_angles_as_they_are() -> None:
    backbone = AliTokAR(TINY, TokenSpace(6, 11, 3))
    angles = backbone.rotary_2Tp.clone()
    assert torch.equal(backbone.bfloat16().rotary_2Tp, angles)


def test_it_keeps_its_contract() -> None:
    check_component(COMPONENT, TINY)


def test_published_weights_are_recognised_and_translate_there_and_back(case: Any) -> None:
    sizes = case.sizes
    settings = AliTokARSettings(
        hidden_size=sizes["hidden_size"],
        num_layers=sizes["num_layers"],
        num_heads=sizes["num_heads"],
        prefix_tokens=sizes["prefix_tokens"],
    )
    space = TokenSpace(sizes["num_tokens"], sizes["codebook_size"], sizes["num_classes"])
    check_published(COMPONENT, case.weights, settings, space)


def test_weights_tell_the_number_of_classes_where_the_images_are_not_there(case: Any) -> None:
    sizes = COMPONENT.published.sizes(case.weights)
    assert (sizes["classes"], sizes["codebook of"]) == (case.sizes["num_classes"], case.sizes["codebook_size"])


@given(
    grid=st.integers(0, 3),
    prefix_tokens=st.integers(0, 4),
    num_layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    pairs_of_pairs=st.integers(1, 3),
    codebook_size=st.integers(2, 40),
    num_classes=st.integers(1, 5),
)
@hypothesis_settings(max_examples=10, deadline=None, derandomize=True)
def test_it_keeps_its_contract_at_other_sizes(
    grid: int,
    prefix_tokens: int,
    num_layers: int,
    heads: int,
    pairs_of_pairs: int,
    codebook_size: int,
    num_classes: int,
) -> None:
    settings = AliTokARSettings(
        hidden_size=4 * pairs_of_pairs * heads, num_layers=num_layers, num_heads=heads, prefix_tokens=prefix_tokens
    )
    space = TokenSpace(max(prefix_tokens + grid**2, 1), codebook_size, num_classes)
    check_backbone(lambda space: AliTokAR(settings, space), space)


@pytest.mark.parametrize(
    ("hidden_size", "num_layers", "published"), [(768, 24, 177e6), (1024, 24, 318e6), (1280, 32, 662e6)]
)
def test_parameters_are_as_many_as_published(hidden_size: int, num_layers: int, published: float) -> None:
    settings = AliTokARSettings(hidden_size=hidden_size, num_layers=num_layers)
    check_settings(settings)
    with torch.device("meta"):
        backbone = AliTokAR(settings, TokenSpace(273, 4096, 1000))
    assert num_parameters(backbone) == pytest.approx(published, rel=0.01)


def test_the_condition_neither_asks_nor_is_asked() -> None:
    """Its query and key are zero, so that it takes the value at its own place, and gives its value evenly."""
    table = rotary_table(prefix_tokens=2, grid=2, head_dim=8)
    assert rotate(torch.randn(7, 8), table)[0].eq(0).all()
    assert table.square().sum(0)[1:].allclose(torch.ones(6, 4))


def test_attention_between_grid_tokens_depends_on_rows_and_columns_apart() -> None:
    grid, prefix = 3, 2
    table = rotary_table(prefix, grid, head_dim=8)
    query, key = torch.randn(2, 8)
    places = 1 + prefix + grid * grid
    scores = rotate(query.expand(places, 8), table) @ rotate(key.expand(places, 8), table).T

    def score(asking: tuple[int, int], asked: tuple[int, int]) -> float:
        places = (1 + prefix + grid * row + column for row, column in (asking, asked))
        return scores[tuple(places)].item()

    assert score((1, 1), (0, 1)) == pytest.approx(score((2, 2), (1, 2)), abs=1e-5)
    assert score((1, 1), (1, 0)) == pytest.approx(score((2, 2), (2, 1)), abs=1e-5)
    assert abs(score((1, 1), (0, 1)) - score((1, 1), (1, 0))) > 1e-3


def test_the_codebook_embedding_regularizer_works_on_it_as_it_is() -> None:
    """Width 32, prefix tokens, one place before token 0: gradients reach the backbone, the codebook gets none."""
    space, codebook_VZ = TokenSpace(13, 24, 3), torch.randn(24, 32, requires_grad=True)
    backbone = AliTokAR(AliTokARSettings(hidden_size=16, num_layers=4, num_heads=2, prefix_tokens=4), space)
    regularizer = rearkit.make(
        "regularizer", "codebook-embedding", RegularizerContext(16, 4, codebook_VZ), projection_dim=8
    )
    objective = rearkit.Objective({"codebook-embedding": regularizer})
    assert objective.layers == (0, 3)
    tokens_BN, replaced_BN = torch.randint(24, (2, 13)), torch.rand(2, 13) < 0.5
    logits, hidden = backbone(tokens_BN, torch.tensor([0, 3]), objective.layers)
    loss = objective(logits, hidden, tokens_BN, replaced_BN, backbone.prefix_length)
    loss.total.backward()
    assert codebook_VZ.grad is None
    assert backbone.blocks[0].mlp.w2.weight.grad.abs().max() > 0
    places_BNZ = regularizer.encode_head(hidden[0][:, 1:])
    similarity_BN = torch.cosine_similarity(places_BNZ, codebook_VZ[tokens_BN], dim=-1)
    expected = -(similarity_BN * ~replaced_BN).sum() / replaced_BN.numel()
    assert loss.parts["regularizer/codebook-embedding/encode"] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("prefix_tokens", [0, 6, 14])
def test_tokens_that_make_no_square_grid_are_refused(prefix_tokens: int) -> None:
    settings = AliTokARSettings(hidden_size=8, num_layers=1, num_heads=1, prefix_tokens=prefix_tokens)
    with pytest.raises(ValueError, match=rf"13 tokens are not prefix_tokens \({prefix_tokens}\) and a square grid"):
        AliTokAR(settings, TokenSpace(13, 4, 2))


def test_heads_of_odd_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_size \(24\) must be a multiple of 16, four times num_heads"):
        AliTokARSettings(hidden_size=24, num_heads=4)
