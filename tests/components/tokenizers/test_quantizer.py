from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rearkit.components.tokenizers.quantizer import VectorQuantizer


def trained_quantizer(codes: int, width: int, seed: int) -> VectorQuantizer:
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(codes, width)
    torch.nn.init.normal_(quantizer.embedding.weight)
    return quantizer


@given(codes=st.integers(2, 20), width=st.integers(1, 8), count=st.integers(1, 30), seed=st.integers(0, 2**31))
@torch.no_grad()
def test_the_code_chosen_is_the_nearest_by_euclidean_distance(codes: int, width: int, count: int, seed: int) -> None:
    quantizer = trained_quantizer(codes, width, seed)
    x = torch.randn(2, count, width)
    distances = torch.cdist(x.double(), quantizer.embedding.weight.double().expand(2, -1, -1))
    chosen = distances.gather(-1, quantizer.nearest(x)[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.min(-1).values, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_code_is_its_own_nearest() -> None:
    quantizer = trained_quantizer(50, 6, 0)
    assert torch.equal(quantizer.nearest(quantizer.embedding.weight[None])[0], torch.arange(50))


def test_the_output_is_the_code_and_the_gradient_passes_straight_through() -> None:
    quantizer = trained_quantizer(5, 3, 1).eval()
    x = torch.randn(2, 4, 3, requires_grad=True)
    codes, tokens = quantizer(x)
    torch.testing.assert_close(codes, quantizer.embedding.weight[tokens].detach())
    weights = torch.randn(2, 4, 3)
    (codes * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)


def test_in_eval_mode_nothing_moves() -> None:
    quantizer = trained_quantizer(5, 3, 1).eval()
    before = quantizer.embedding.weight.clone()
    quantizer(torch.randn(2, 4, 3))
    assert torch.equal(quantizer.embedding.weight, before)
    assert not quantizer.cluster_size_V.any()


def test_the_first_step_of_a_fit_starts_the_codebook_from_the_data() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 2, decay=0.999)
    x = torch.randn(1, 10, 2) + 100
    quantizer.train()(x)
    assert (quantizer.embedding.weight - x[0].mean(0)).norm(dim=-1).max() < 10


def test_codes_follow_the_mean_of_the_vectors_that_choose_them() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 1, decay=0.5).train()
    x = torch.tensor([[[-1.0], [-3.0], [10.0], [12.0]]])
    for _ in range(60):
        quantizer(x)
    torch.testing.assert_close(quantizer.embedding.weight.flatten().sort().values, torch.tensor([-2.0, 11.0]))


def test_a_dead_code_comes_back_to_life_on_the_data() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(3, 2, decay=0.5).train()
    x = torch.randn(1, 300, 2)
    quantizer(x)
    with torch.no_grad():
        quantizer.embedding.weight[2] = 1e4
        quantizer.cluster_size_V[2] = 0
    for _ in range(20):
        quantizer(x)
    assert quantizer.embedding.weight.abs().max() < 10
    assert len(quantizer.nearest(x).unique()) == 3
    assert quantizer.share_used(quantizer.nearest(x)) == 1
    assert quantizer.share_used(torch.zeros(1, 4, dtype=torch.int64)) == pytest.approx(1 / 3)


def test_averages_are_left_out_of_the_state_dict() -> None:
    quantizer = VectorQuantizer(3, 2)
    assert set(quantizer.state_dict()) == {"embedding.weight"}
    assert {"cluster_size_V", "cluster_sum_VZ"} == {name for name, _ in quantizer.named_buffers()}


@torch.no_grad()
def test_a_normalised_quantizer_goes_by_direction_alone() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(6, 3, normalised=True)
    torch.nn.init.normal_(quantizer.embedding.weight)
    torch.testing.assert_close(quantizer.codebook().norm(dim=-1), torch.ones(6))
    x = torch.randn(2, 40, 3)
    cosine = torch.nn.functional.normalize(x, dim=-1) @ quantizer.codebook().T
    assert torch.equal(quantizer.nearest(x), cosine.argmax(-1))
    assert torch.equal(quantizer.nearest(7 * x), quantizer.nearest(x))
    plain = VectorQuantizer(6, 3)
    plain.load_state_dict(quantizer.state_dict())
    assert not torch.equal(plain.nearest(x), quantizer.nearest(x))


def test_a_normalised_quantizer_is_fitted_on_the_unit_sphere() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(2, 2, decay=0.5, normalised=True).train()
    x = torch.tensor([[[5.0, 1.0], [0.1, -0.02], [-1.0, 9.0], [-0.2, 1.8]]], requires_grad=True)
    for _ in range(60):
        codes, _ = quantizer(x)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(1, 4))
    by_first = quantizer.codebook()[quantizer.codebook()[:, 0].argsort()]
    torch.testing.assert_close(by_first, torch.tensor([[-0.1104, 0.9939], [1.0, 0.0]]), rtol=0, atol=1e-4)
    codes[0, 0, 0].backward()
    assert x.grad[0, 0].abs().sum() > 0  # through the scaling, to the features


def test_the_entropy_penalty_is_that_of_its_formula_and_least_where_codes_are_evenly_chosen() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 2)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
    x = torch.randn(2, 5, 2)
    p = (-torch.cdist(x.flatten(0, 1), quantizer.codebook()).square() / 0.5).softmax(1).double()
    mean = p.mean(0)
    expected = -(p * p.log()).sum(1).mean() + (mean * mean.log()).sum()
    assert quantizer.entropy_penalty(x, 0.5).item() == pytest.approx(expected.item(), rel=1e-4)
    evenly = quantizer.embedding.weight.detach()[None] * 2
    assert quantizer.entropy_penalty(evenly, 0.1) < quantizer.entropy_penalty(evenly[:, :1].expand(1, 4, 2), 0.1) - 1


@pytest.mark.parametrize("normalised", [False, True])
def test_features_that_a_callers_autocast_narrowed_find_their_codes(normalised: bool) -> None:
    quantizer = VectorQuantizer(8, 4, normalised=normalised).eval()
    x = quantizer.embedding.weight.detach()[None].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.nearest(x), torch.arange(8)[None])
