from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rearkit.components.regularizers.codebook_embedding import CodebookEmbedding, CodebookEmbeddingSettings
from rearkit.contracts import Regularizer, RegularizerContext, TrainingStep

V, Z, D, P = 7, 3, 5, 2


def build(num_layers: int = 4, **settings: object) -> CodebookEmbedding:
    torch.manual_seed(0)
    codebook = torch.randn(V, Z)
    return CodebookEmbedding(
        CodebookEmbeddingSettings(projection_dim=6, **settings), RegularizerContext(D, num_layers, codebook)
    )


def step(hidden: dict[int, torch.Tensor], tokens: torch.Tensor, replaced: torch.Tensor) -> TrainingStep:
    return TrainingStep(tokens_BN=tokens, replaced_BN=replaced, prefix_length=P, hidden=hidden)


class Identity(nn.Module):
    """A head that passes the hidden state on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def aligned(hidden_width: int = Z) -> CodebookEmbedding:
    """A regularizer whose heads pass hidden states on, so that these can be set to embeddings."""
    regularizer = build(encode_layer=0, decode_layer=2)
    regularizer.encode_head = regularizer.decode_head = Identity()  # type: ignore[assignment]
    return regularizer


@given(batch=st.integers(1, 4), count=st.integers(1, 6), seed=st.integers(0, 2**31), rate=st.floats(0, 1))
def test_terms_are_negated_cosines_averaged_over_all_places(batch: int, count: int, seed: int, rate: float) -> None:
    regularizer = build(decode_layer=2)
    generator = torch.Generator().manual_seed(seed)
    hidden = {layer: torch.randn(batch, P + count, D, generator=generator) for layer in (0, 2)}
    tokens = torch.randint(V, (batch, count), generator=generator)
    replaced = torch.rand(batch, count, generator=generator) < rate
    terms = regularizer(step(hidden, tokens, replaced))
    encode = decode = 0.0
    for b in range(batch):
        for i in range(count):
            target = regularizer.codebook_VZ[tokens[b, i]]
            if not replaced[b, i]:
                encode -= F.cosine_similarity(regularizer.encode_head(hidden[0][b, P + i]), target, dim=0).item()
            decode -= F.cosine_similarity(regularizer.decode_head(hidden[2][b, P + i - 1]), target, dim=0).item()
    assert terms["encode"].item() == pytest.approx(encode / (batch * count), abs=1e-5)
    assert terms["decode"].item() == pytest.approx(decode / (batch * count), abs=1e-5)


def test_hidden_states_that_are_the_embeddings_reach_the_least_loss() -> None:
    regularizer = aligned()
    tokens = torch.tensor([[1, 4, 6]])
    embeddings = regularizer.codebook_VZ[tokens] * 3
    own, predicting = torch.zeros(1, P + 3, Z), torch.zeros(1, P + 3, Z)
    own[:, P:], predicting[:, P - 1 : -1] = embeddings, embeddings
    terms = regularizer(step({0: own, 2: predicting}, tokens, torch.zeros(1, 3, dtype=torch.bool)))
    assert terms["encode"].item() == pytest.approx(-1)
    assert terms["decode"].item() == pytest.approx(-1)


def test_a_replaced_token_adds_nothing_to_the_encode_term_and_still_counts() -> None:
    regularizer = aligned()
    tokens = torch.tensor([[1, 4, 6, 2]])
    own = torch.zeros(1, P + 4, Z)
    own[:, P:] = regularizer.codebook_VZ[tokens]
    replaced = torch.tensor([[True, False, False, True]])
    terms = regularizer(step({0: own, 2: own}, tokens, replaced))
    assert terms["encode"].item() == pytest.approx(-0.5)
    all_replaced = regularizer(step({0: own, 2: own}, tokens, torch.ones_like(replaced)))
    assert all_replaced["encode"].item() == 0


def test_replacement_leaves_the_decode_term_alone() -> None:
    regularizer = build(decode_layer=2)
    hidden = {layer: torch.randn(2, P + 4, D) for layer in (0, 2)}
    tokens = torch.randint(V, (2, 4))
    none, everything = torch.zeros(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    clean, noisy = regularizer(step(hidden, tokens, none)), regularizer(step(hidden, tokens, everything))
    assert torch.equal(clean["decode"], noisy["decode"])
    assert not torch.equal(clean["encode"], noisy["encode"])


def test_gradients_reach_hidden_states_and_heads_but_not_the_codebook() -> None:
    regularizer = build(decode_layer=2)
    hidden = {layer: torch.randn(1, P + 2, D, requires_grad=True) for layer in (0, 2)}
    terms = regularizer(step(hidden, torch.tensor([[0, 1]]), torch.zeros(1, 2, dtype=torch.bool)))
    sum(terms.values()).backward()
    assert all(state.grad is not None and state.grad.abs().sum() > 0 for state in hidden.values())
    assert all(parameter.grad is not None for parameter in regularizer.parameters())
    assert not regularizer.codebook_VZ.requires_grad


@pytest.mark.parametrize(("depth", "layer"), [(20, 15), (24, 18), (4, 3), (1, 0), (2, 1)])
def test_the_decode_layer_lies_at_three_quarters_of_the_depth(depth: int, layer: int) -> None:
    assert build(num_layers=depth).layers == sorted({0, layer})


@pytest.mark.parametrize("only", ["encode", "decode"])
def test_one_side_alone_has_one_head_one_layer_and_one_term(only: str) -> None:
    other = "decode" if only == "encode" else "encode"
    regularizer = build(**{other: False, "decode_layer": 2})
    assert isinstance(regularizer, Regularizer)
    assert regularizer.layers == [0 if only == "encode" else 2]
    assert {name.partition("_")[0] for name, _ in regularizer.named_parameters()} == {only}
    hidden = {layer: torch.randn(1, P + 2, D) for layer in regularizer.layers}
    assert set(regularizer(step(hidden, torch.tensor([[0, 1]]), torch.zeros(1, 2, dtype=torch.bool)))) == {only}


def test_neither_side_is_refused() -> None:
    with pytest.raises(ValueError, match="leave the regularizer out"):
        CodebookEmbeddingSettings(encode=False, decode=False)


def test_a_layer_beyond_the_backbone_is_refused_with_the_layers_there_are() -> None:
    with pytest.raises(ValueError, match="layer 4 is not in the backbone, whose blocks are 0 to 3"):
        build(decode_layer=4)


def test_heads_are_three_linear_layers_with_silu_between() -> None:
    regularizer = build()
    kinds = [type(layer) for layer in regularizer.encode_head]
    assert kinds == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]
    assert CodebookEmbeddingSettings().projection_dim == 2048


def test_the_codebook_is_not_saved_with_the_heads() -> None:
    assert not any("codebook" in key for key in build().state_dict())
