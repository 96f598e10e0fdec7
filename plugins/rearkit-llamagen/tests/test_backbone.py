from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rearkit_llamagen import rearkit_components
from rearkit_llamagen.backbone import LlamaGenGPT
from rearkit_llamagen.blocks import LlamaGenGPTSettings
from rearkit_llamagen.rotary import rotary_table, rotate
from rearkit_llamagen.weights import LlamaGenGPTLayout

import rearkit
from rearkit.contracts import RegularizerContext, TokenSpace, num_parameters
from rearkit.testing import check_backbone, check_component, check_settings

AGREE = {"rtol": 0, "atol": 1e-4}
(COMPONENT,) = (component for component in rearkit_components() if component.kind == "backbone")
TINY = LlamaGenGPTSettings(hidden_size=16, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def case(reference: Callable[[str], Any]) -> Any:
    return reference("tiny_llamagen_ar")


@pytest.fixture(scope="module")
def backbone(case: Any) -> LlamaGenGPT:
    sizes = case.sizes
    module = LlamaGenGPT(
        LlamaGenGPTSettings(**{name: sizes[name] for name in ("hidden_size", "num_layers", "num_heads")}),
        TokenSpace(sizes["num_tokens"], sizes["codebook_size"], sizes["num_classes"]),
    )
    module.load_state_dict(LlamaGenGPTLayout().to_rearkit(case.weights))
    return module.eval()


@torch.no_grad()
def test_logits_agree_with_the_published_code(case: Any, backbone: LlamaGenGPT) -> None:
    no_label = torch.full_like(case["classes"], case.sizes["num_classes"])
    torch.testing.assert_close(backbone(case["tokens"], case["classes"])[0], case["clean_logits"], **AGREE)
    torch.testing.assert_close(backbone(case["tokens"], no_label)[0], case["uncond_logits"], **AGREE)
    assert (case["clean_logits"] - case["uncond_logits"])[:, :-1].abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_guided_logits_of_cached_decoding_agree_with_the_published_code(case: Any, backbone: LlamaGenGPT) -> None:
    no_label = torch.full_like(case["classes"], case.sizes["num_classes"])
    logits, cache = backbone.start(torch.cat([case["classes"], no_label]))
    guided = []
    for tokens_B in case["tokens"].unbind(1):
        conditional, unconditional = logits.chunk(2)
        guided.append(unconditional + (conditional - unconditional) * case.sizes["guidance_scale"])
        if len(guided) < case.sizes["num_tokens"]:
            logits = backbone.step(tokens_B.repeat(2), cache)
    torch.testing.assert_close(torch.stack(guided, 1), case["guided_logits"], **AGREE)


def test_a_cast_leaves_the_angles_as_they_are() -> None:
    backbone = LlamaGenGPT(TINY, TokenSpace(9, 11, 3))
    angles = backbone.rotary_2Tp.clone()
    assert torch.equal(backbone.bfloat16().rotary_2Tp, angles)


def test_it_keeps_its_contract() -> None:
    check_component(COMPONENT, TINY)


@given(
    num_tokens=st.integers(1, 12),
    grid_width=st.integers(0, 5),
    num_layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    pairs_of_pairs=st.integers(1, 3),
    codebook_size=st.integers(2, 40),
    num_classes=st.integers(1, 5),
)
@hypothesis_settings(max_examples=10, deadline=None, derandomize=True)
def test_it_keeps_its_contract_at_other_sizes(
    num_tokens: int,
    grid_width: int,
    num_layers: int,
    heads: int,
    pairs_of_pairs: int,
    codebook_size: int,
    num_classes: int,
) -> None:
    settings = LlamaGenGPTSettings(
        hidden_size=4 * pairs_of_pairs * heads, num_layers=num_layers, num_heads=heads, grid_width=grid_width
    )
    space = TokenSpace(num_tokens, codebook_size, num_classes)
    check_backbone(lambda space: LlamaGenGPT(settings, space), space)


@pytest.mark.parametrize(
    ("hidden_size", "num_layers", "num_heads", "published"),
    [
        (768, 12, 12, 111e6),
        (1024, 24, 16, 343e6),
        (1280, 36, 20, 775e6),
        (1536, 48, 24, 1.4e9),
        (3200, 24, 32, 3.1e9),
    ],
    ids=["B", "L", "XL", "XXL", "3B"],
)
def test_parameters_are_as_many_as_published(
    hidden_size: int, num_layers: int, num_heads: int, published: float
) -> None:
    settings = LlamaGenGPTSettings(hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads)
    check_settings(settings)
    with torch.device("meta"):
        backbone = LlamaGenGPT(settings, TokenSpace(256, 16384, 1000))
    assert num_parameters(backbone) == pytest.approx(published, rel=0.01)


def test_dropout_is_the_published_one_by_default() -> None:
    settings = LlamaGenGPTSettings()
    assert (settings.token_dropout, settings.dropout, settings.attention_dropout) == (0.1, 0.1, 0.0)
    module = LlamaGenGPT(TINY, TokenSpace(9, 11, 3))
    torch.nn.init.normal_(module.output.weight)  # zero in a fresh one
    tokens, classes = torch.randint(11, (2, 9)), torch.tensor([0, 3])
    assert not torch.equal(module(tokens, classes)[0], module(tokens, classes)[0])


def test_the_class_neither_asks_nor_is_asked() -> None:
    table = rotary_table(num_tokens=4, grid_width=2, head_dim=8)
    assert rotate(torch.randn(5, 8), table)[0].eq(0).all()
    assert table.square().sum(0)[1:].allclose(torch.ones(4, 4))


def test_attention_between_tokens_depends_on_rows_and_columns_apart() -> None:
    width = 3
    table = rotary_table(num_tokens=9, grid_width=width, head_dim=8)
    query, key = torch.randn(2, 8)
    scores = rotate(query.expand(10, 8), table) @ rotate(key.expand(10, 8), table).T

    def score(asking: tuple[int, int], asked: tuple[int, int]) -> float:
        return scores[tuple(1 + width * row + column for row, column in (asking, asked))].item()

    assert score((1, 1), (0, 1)) == pytest.approx(score((2, 2), (1, 2)), abs=1e-5)
    assert score((1, 1), (1, 0)) == pytest.approx(score((2, 2), (2, 1)), abs=1e-5)
    assert abs(score((1, 1), (0, 1)) - score((1, 1), (1, 0))) > 1e-3


@pytest.mark.parametrize(
    ("num_tokens", "grid_width", "same_as"), [(9, 0, 3), (7, 0, 3), (10, 0, 4), (1, 0, 1), (6, 2, 2)]
)
def test_rows_are_as_wide_as_a_square_unless_told(num_tokens: int, grid_width: int, same_as: int) -> None:
    settings = LlamaGenGPTSettings(hidden_size=8, num_layers=1, num_heads=1, grid_width=grid_width)
    found = LlamaGenGPT(settings, TokenSpace(num_tokens, 11, 3)).rotary_2Tp
    assert torch.equal(found, rotary_table(num_tokens, same_as, 8))


@pytest.mark.parametrize(("grid", "same_as"), [((4, 2), 2), ((2, 4), 4), ((6, 6), 6), (None, 5)])
def test_rows_are_those_of_the_grid_at_any_size(grid: tuple[int, int] | None, same_as: int) -> None:
    """The setting is of the size that was trained."""
    settings = LlamaGenGPTSettings(hidden_size=8, num_layers=1, num_heads=1, grid_width=5)
    number = math.prod(grid or (10,))
    found = LlamaGenGPT(settings, TokenSpace(number, 11, 3, grid=grid)).rotary_2Tp
    assert torch.equal(found, rotary_table(number, same_as, 8))


def test_heads_of_odd_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_size \(24\) must be a multiple of 16, four times num_heads"):
        LlamaGenGPTSettings(hidden_size=24, num_heads=4)


def test_the_codebook_embedding_regularizer_works_on_it_as_it_is() -> None:
    """Narrow codes, one place before token 0: gradients reach the backbone, the codebook gets none."""
    space, codebook_VZ = TokenSpace(9, 24, 3), torch.randn(24, 8, requires_grad=True)
    backbone = LlamaGenGPT(LlamaGenGPTSettings(hidden_size=16, num_layers=4, num_heads=2), space)
    regularizer = rearkit.make(
        "regularizer", "codebook-embedding", RegularizerContext(16, 4, codebook_VZ), projection_dim=8
    )
    objective = rearkit.Objective({"codebook-embedding": regularizer})
    assert objective.layers == (0, 3)
    tokens_BN, replaced_BN = torch.randint(24, (2, 9)), torch.rand(2, 9) < 0.5
    logits, hidden = backbone(tokens_BN, torch.tensor([0, 3]), objective.layers)
    objective(logits, hidden, tokens_BN, replaced_BN, backbone.prefix_length).total.backward()
    assert codebook_VZ.grad is None
    assert backbone.blocks[0].feed_forward.w2.weight.grad.abs().max() > 0
