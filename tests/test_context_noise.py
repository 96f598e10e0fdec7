from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rearkit.components.noise.schedules import FixedNoise, RandomNoise
from rearkit.context_noise import corrupt
from rearkit.contracts import NoiseStep
from rearkit.errors import PluginError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 6), st.integers(1, 20), st.integers(2, 50), st.floats(0, 1), st.integers(0, 2**31))
def test_noise_changes_only_what_it_says_it_replaced(
    batch: int, count: int, codes: int, rate: float, seed: int
) -> None:
    tokens = torch.randint(codes, (batch, count), generator=generator(seed))
    before = tokens.clone()
    noisy = corrupt(tokens, RandomNoise(level=rate), 0.5, codes, generator(seed))
    assert torch.equal(tokens, before)
    assert noisy.tokens_BN.dtype == torch.int64
    assert torch.equal(noisy.tokens_BN[~noisy.replaced_BN], tokens[~noisy.replaced_BN])
    assert 0 <= noisy.tokens_BN.min() <= noisy.tokens_BN.max() < codes
    assert noisy.rates_B.shape == (batch,)


def test_the_share_replaced_is_the_rate_and_the_codes_drawn_are_uniform() -> None:
    tokens = torch.full((200, 500), 3)
    noisy = corrupt(tokens, FixedNoise(rate=0.3), 0, 8, generator())
    assert noisy.replaced_BN.double().mean().item() == pytest.approx(0.3, abs=0.005)
    drawn = noisy.tokens_BN[noisy.replaced_BN].bincount(minlength=8).double()
    assert (drawn / drawn.sum() - 1 / 8).abs().max() < 0.01  # the code that stood there is as likely as any other


@pytest.mark.parametrize(("rate", "replaced"), [(0.0, False), (1.0, True)])
def test_rates_of_zero_and_one_replace_nothing_and_everything(rate: float, replaced: bool) -> None:
    noisy = corrupt(torch.zeros(4, 100, dtype=torch.int64), FixedNoise(rate=rate), 0, 5, generator())
    assert (noisy.replaced_BN == replaced).all()


def test_noise_is_a_function_of_the_generator() -> None:
    tokens = torch.zeros(4, 10, dtype=torch.int64)
    first, second, other = (corrupt(tokens, FixedNoise(rate=0.5), 0, 9, generator(s)).tokens_BN for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


class PerToken:
    """Rates that rise along the sequence; replaced by the code before, as far as the draw says."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def rates(self, progress: float, batch: int, generator: torch.Generator) -> Tensor:
        rates: Tensor = self.changes.get("rates", torch.linspace(0, 1, 10).expand(batch, 10))
        return rates

    def replacements(self, step: NoiseStep) -> Tensor:
        self.step = step
        found: Tensor = self.changes.get("replacements", step.tokens_BN - 1)
        return found


def test_each_token_may_have_a_rate_and_a_replacement_of_its_own() -> None:
    noise, tokens = PerToken(), torch.full((4000, 10), 3)
    noisy = corrupt(tokens, noise, 0.5, 8, generator())
    shares = noisy.replaced_BN.double().mean(0)
    torch.testing.assert_close(shares, torch.linspace(0, 1, 10).double(), atol=0.03, rtol=0)
    assert torch.equal(noisy.tokens_BN, torch.where(noisy.replaced_BN, 2, 3))
    torch.testing.assert_close(noisy.rates_B, torch.full((4000,), 0.5))
    assert noise.step.logits_BNV is None
    assert 0 <= noise.step.draws_BN.min() < 0.01 < 0.99 < noise.step.draws_BN.max() < 1
    assert noise.step.progress == 0.5


def test_replacements_may_be_the_models_own() -> None:
    class Own(PerToken):
        reads = ("logits_BNV",)

        def replacements(self, step: NoiseStep) -> Tensor:
            assert step.logits_BNV is not None
            return step.logits_BNV.argmax(-1)

    tokens = torch.randint(8, (3, 10))
    # A model that predicts the token before the last one that it saw, one place further than there are targets.
    predict = lambda context: torch.nn.functional.one_hot(torch.nn.functional.pad(context, (0, 1)).roll(1, 1), 8)  # noqa: E731
    noisy = corrupt(tokens, Own(rates=torch.ones(3)), 0, 8, generator(), predict=lambda x: predict(x).float())
    assert torch.equal(noisy.tokens_BN[:, 1:], tokens[:, :-1])
    with pytest.raises(ValueError, match=r"noise Own reads the model's predictions: give corrupt\(predict=…\)"):
        corrupt(tokens, Own(), 0, 8, generator())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": torch.rand(10, 1)}, r"rates must be float32 of shape \(3,\) or \(3, 10\); found .* \(10, 1\)"),
        ({"rates": torch.rand(())}, "rates must be"),
        ({"rates": 0.5}, "rates must be .* found 0.5"),
        ({"rates": torch.ones(3, dtype=torch.int64)}, "rates must be .* found torch.int64"),
        ({"rates": torch.full((3,), 1.5)}, r"rates must lie in \[0, 1\]; found 1.5 to 1.5"),
        ({"rates": torch.full((3,), float("nan"))}, r"rates must lie in \[0, 1\]"),
        ({"replacements": torch.zeros(3, dtype=torch.int64)}, r"replacements must be int64 of shape \(3, 10\)"),
        ({"replacements": torch.zeros(3, 10)}, "replacements must be int64 .* found 'torch.float32 of shape"),
        ({"replacements": None}, "replacements must be int64 .* found None"),
    ],
)
def test_a_schedule_that_breaks_its_contract_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=f"noise PerToken: {message}"):
        corrupt(torch.zeros(3, 10, dtype=torch.int64), PerToken(**changes), 0, 8, generator())
