from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.analysis.exposure import ByPosition, by_position, under_own_draws, under_random_codes
from rearkit.contracts import Backbone

V, N = 8, 6


class Copier(Backbone):
    """Predicts, with confidence, the token before plus one: right on counting sequences with a clean context."""

    prefix_length, hidden_size, num_layers = 1, V, 1

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        before = F.pad(tokens_BN, (1, 0), value=V - 1)  # so that token 0 is predicted to be 0
        return self.scale * F.one_hot((before + 1) % V, V).float(), {}


def counting(batch: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of images that count up from 0."""
    return [(torch.arange(N).repeat(batch, 1), torch.zeros(batch, dtype=torch.int64)) for _ in range(3)]


def test_clean_contexts_are_predicted_as_in_validation() -> None:
    clean, *_ = under_random_codes(Copier(5.0), counting(4), V)
    expected = math.log(math.exp(5) + V - 1) - 5
    assert (clean.replaced, clean.accuracy) == (0.0, 1.0)
    assert clean.cross_entropy == pytest.approx(expected, rel=1e-5)


def test_accuracy_falls_by_the_share_of_codes_that_are_wrong() -> None:
    found = under_random_codes(Copier(5.0), counting(2000), V)
    assert [one.replaced for one in found] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    for one in found:
        wrong = one.replaced * (1 - 1 / V) * (N - 1) / N  # token 0 has no token before it
        assert one.accuracy == pytest.approx(1 - wrong, abs=0.01)
    assert [one.cross_entropy for one in found] == sorted(one.cross_entropy for one in found)


def test_the_draws_of_a_sure_and_right_model_cost_nothing_and_those_of_an_unsure_one_do() -> None:
    sure = under_own_draws(Copier(100.0), counting(50))
    assert all(one.accuracy == 1 for one in sure)
    unsure = under_own_draws(Copier(0.0), counting(2000))
    assert unsure[0].cross_entropy == pytest.approx(math.log(V))  # uniform, whatever the context
    half = under_own_draws(Copier(math.log(V - 1)), counting(2000))
    assert half[0].accuracy == 1
    assert half[-1].replaced == 1
    assert half[-1].accuracy == pytest.approx(1 - 0.5 * (N - 1) / N, abs=0.01)  # each draw is right half the time


def test_a_code_that_is_ruled_out_is_not_drawn_where_the_random_number_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    # Code 0 comes first, and has a probability of 0 everywhere but at token 0.
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))
    (*_, all_of_it) = under_own_draws(Copier(1e4), counting(2))
    assert all_of_it.accuracy == 1


def test_all_models_are_measured_in_the_same_contexts() -> None:
    first, again = (under_random_codes(Copier(2.0), counting(20), V) for _ in range(2))
    assert first == again


def test_own_draws_cost_nothing_at_the_first_token_and_what_a_wrong_token_costs_at_the_others() -> None:
    found = by_position(Copier(math.log(V - 1)), counting(2000))
    right = math.log(2)  # the likeliest code has probability one half
    assert found.clean == pytest.approx([right] * N)
    # After a wrong draw, half of all, the true token is one of those with the other half of the probability.
    wrong = math.log(2 * (V - 1))
    assert found.own_draws == pytest.approx([right] + [(right + wrong) / 2] * (N - 1), rel=0.03)
    assert found.rise(0.5, 1) == pytest.approx((wrong - right) / 2, rel=0.05)


def test_a_stretch_of_the_image_has_at_least_one_token() -> None:
    assert ByPosition((1.0, 1.0), (1.5, 3.0)).rise(0, 0.1) == 0.5
    assert ByPosition((1.0, 1.0), (1.5, 3.0)).rise(0, 1) == 1.25
    assert ByPosition((1.0, 1.0), (1.5, 3.0)).rise(0.75, 1) == 2.0
    assert ByPosition((1.0,), (1.5,)).rise(0.75, 1) == ByPosition((1.0,), (1.5,)).rise(0, 0.25) == 0.5
