from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rearkit_rivals.replacement_noise import MaskToken, MaskTokenSettings, NearestCode, NearestCodeSettings
from rearkit_rivals.scheduled_sampling import ScheduledSampling

from rearkit.contracts import NoiseContext, NoiseStep, TokenSpace
from rearkit.testing import check_noise_schedule

SPACE = TokenSpace(num_tokens=6, codebook_size=11, num_classes=3)
# Codes on a line at unequal distances, so that no two neighbours are equally far.
LINE_VZ = torch.arange(11.0).square()[:, None]


def draw_all(noise: Any, token: int, draws: int = 10000, logits_V: torch.Tensor | None = None) -> torch.Tensor:
    """The replacements of one token at evenly spaced draws, whose shares are their probabilities."""
    tokens_BN = torch.full((1, draws), token)
    uniform_BN = ((torch.arange(draws) + 0.5) / draws)[None]
    logits_BNV = None if logits_V is None else logits_V.expand(1, draws, -1)
    return noise.replacements(NoiseStep(tokens_BN, tokens_BN >= 0, uniform_BN, 0.5, logits_BNV))[0]


@pytest.mark.parametrize(
    ("settings", "mean", "most"),
    [
        ({"schedule": "fixed", "level": 0.3}, 0.3, 0.3),
        ({"schedule": "random", "level": 0.4}, 0.2, 0.4),
        ({"schedule": "linear", "level": 0.8, "end_level": 0.2, "span_end": 1.0}, 0.25, 0.5),
        ({"schedule": "linear", "level": 0.8, "end_level": 0.2, "span_end": 0.25}, 0.1, 0.2),
    ],
)
def test_rates_are_those_of_the_built_in_schedules(settings: dict[str, Any], mean: float, most: float) -> None:
    for noise in (
        MaskToken(MaskTokenSettings(**settings), NoiseContext(SPACE, LINE_VZ)),
        NearestCode(NearestCodeSettings(**settings), NoiseContext(SPACE, LINE_VZ)),
    ):
        rates_B = noise.rates(0.5, 4000, torch.Generator().manual_seed(0))
        assert rates_B.mean().item() == pytest.approx(mean, abs=0.02)
        assert rates_B.max().item() == pytest.approx(most, abs=0.01)
        check_noise_schedule(noise, space=SPACE)


def test_neighbours_are_equally_likely() -> None:
    noise = NearestCode(NearestCodeSettings(neighbours=4), NoiseContext(SPACE, LINE_VZ))
    drawn = draw_all(noise, 3)
    # Code 3 is the number 9, whose distances to 4, 16, 1 and 0 are 5, 7, 8 and 9; the next is 16, to 25.
    assert drawn.unique().tolist() == [0, 1, 2, 4]
    assert [int((drawn == code).sum()) for code in (0, 1, 2, 4)] == [2500] * 4


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearer_neighbours_are_likelier_by_the_formula(metric: str) -> None:
    codebook_VZ = torch.randn(11, 3, generator=torch.Generator().manual_seed(2))
    settings = NearestCodeSettings(neighbours=3, temperature=2.0, metric=metric)
    drawn = draw_all(NearestCode(settings, NoiseContext(SPACE, codebook_VZ)), 6)
    if metric == "cosine":
        codebook_VZ = codebook_VZ / codebook_VZ.norm(dim=-1, keepdim=True)
    squares_VV = torch.cdist(codebook_VZ, codebook_VZ).square().fill_diagonal_(torch.inf)
    scale = squares_VV.min(1).values.mean()
    chosen = squares_VV[6].argsort()[:3]
    expected = (-squares_VV[6, chosen] / (2.0 * scale)).softmax(-1)
    shares = torch.stack([(drawn == code).float().mean() for code in chosen])
    torch.testing.assert_close(shares, expected, atol=2e-3, rtol=0)


def test_a_codebook_without_so_many_neighbours_is_refused() -> None:
    with pytest.raises(ValueError, match="neighbours = 11: each of the 11 codes has 10 others"):
        NearestCode(NearestCodeSettings(neighbours=11), NoiseContext(SPACE, LINE_VZ))


def test_a_mask_is_the_id_after_the_codes() -> None:
    noise = MaskToken(MaskTokenSettings(), NoiseContext(SPACE, LINE_VZ))
    assert noise.extra_tokens == 1
    assert draw_all(noise, 3).unique().tolist() == [11]


def test_draws_have_the_predicted_probabilities() -> None:
    logits_V = torch.randn(11, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 1.0, 2.0):
        drawn = draw_all(ScheduledSampling(temperature=temperature), 3, logits_V=logits_V)
        shares = drawn.bincount(minlength=11) / len(drawn)
        torch.testing.assert_close(shares, (logits_V / temperature).softmax(-1), atol=2e-4, rtol=0)
    greedy = draw_all(ScheduledSampling(temperature=0.0), 3, logits_V=logits_V)
    assert greedy.unique().tolist() == [logits_V.argmax().item()]


def test_a_code_that_cannot_be_is_never_drawn() -> None:
    logits_V = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    assert draw_all(ScheduledSampling(), 0, logits_V=logits_V).unique().tolist() == [1, 3]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"schedule": "linear", "end_rate": 0.4}, {0.0: 1.0, 0.5: 0.8, 1.0: 0.6}),
        ({"schedule": "exponential", "end_rate": 0.75}, {0.0: 1.0, 0.5: 0.5, 1.0: 0.25}),
        ({"schedule": "inverse-sigmoid", "middle": 0.5, "steepness": 9.0}, {0.0: 0.9, 0.5: 0.5, 1.0: 0.1}),
    ],
)
def test_the_share_of_true_tokens_falls_as_in_the_paper(settings: dict[str, Any], kept: dict[float, float]) -> None:
    noise = ScheduledSampling(**settings)
    for progress, share in kept.items():
        assert noise.kept(progress) == pytest.approx(share)
        rates_B = noise.rates(progress, 3, torch.Generator())
        assert rates_B.tolist() == pytest.approx([1 - share] * 3)
    check_noise_schedule(noise)


def test_inverse_sigmoid_is_the_papers_over_steps() -> None:
    """k / (k + exp(i/k)) at step i, where a run of S steps has its middle at k·ln k steps."""
    k = 7.0
    steps = 2 * k * math.log(k)
    noise = ScheduledSampling(schedule="inverse-sigmoid", middle=0.5, steepness=k)
    for i in range(0, int(steps), 3):
        assert noise.kept(i / steps) == pytest.approx(k / (k + math.exp(i / k)))


def test_a_steep_fall_does_not_overflow() -> None:
    noise = ScheduledSampling(schedule="inverse-sigmoid", middle=0.001, steepness=1e6)
    assert [noise.kept(progress) for progress in (0.0, 1.0)] == [pytest.approx(1, abs=1e-5), 0]
