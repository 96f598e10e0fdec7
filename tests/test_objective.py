from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rearkit.components.noise.schedules import FixedNoise, RandomNoise
from rearkit.context_noise import corrupt
from rearkit.contracts import TrainingStep
from rearkit.objective import Objective, capture


class Constant(nn.Module):
    """A regularizer with known terms; it notes what it was given."""

    def __init__(self, weight: float, layers: list[int], **terms: float) -> None:
        super().__init__()
        self.weight, self.layers = weight, layers
        self.terms = {name: nn.Parameter(torch.tensor(value)) for name, value in terms.items()}

    def forward(self, step: TrainingStep) -> Mapping[str, Tensor]:
        self.given = step
        return self.terms


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


@pytest.mark.parametrize("last_place", [0, 1], ids=["N logits", "N + 1 logits"])
def test_without_regularizers_the_loss_is_the_cross_entropy_of_clean_tokens(last_place: int) -> None:
    logits = torch.randn(3, 5 + last_place, 7)
    tokens = torch.randint(7, (3, 5))
    loss = Objective({})(logits, {}, tokens, torch.ones(3, 5, dtype=torch.bool), 2)
    expected = -logits.log_softmax(-1)[:, :5].gather(-1, tokens[..., None]).mean()
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.parts["cross_entropy"], expected)
    assert loss.parts["accuracy"] == (logits[:, :5].argmax(-1) == tokens).float().mean()
    assert set(loss.parts) == {"cross_entropy", "accuracy"}


def test_the_total_adds_each_regularizer_with_its_weight() -> None:
    objective = Objective({"a": Constant(2.0, [], x=3.0, y=5.0), "b": Constant(0.5, [], z=7.0)})
    logits, tokens = torch.randn(1, 2, 3), torch.tensor([[0, 2]])
    loss = objective(logits, {}, tokens, torch.zeros(1, 2, dtype=torch.bool), 1)
    cross_entropy = F.cross_entropy(logits[0], tokens[0])
    torch.testing.assert_close(loss.total, cross_entropy + 2 * (3 + 5) + 0.5 * 7)
    assert {name: value.item() for name, value in loss.parts.items() if name.startswith("regularizer")} == {
        "regularizer/a/x": 3.0,
        "regularizer/a/y": 5.0,
        "regularizer/b/z": 7.0,
    }
    assert not any(value.requires_grad for value in loss.parts.values())
    loss.total.backward()
    assert objective.regularizers["a"].terms["x"].grad == 2


def test_regularizers_get_what_they_are_promised() -> None:
    regularizer = Constant(1.0, [4], x=0.0)
    hidden, tokens = {4: torch.zeros(1, 4, 2)}, torch.tensor([[0, 2]])
    replaced = torch.tensor([[True, False]])
    Objective({"a": regularizer})(torch.randn(1, 2, 3), hidden, tokens, replaced, 2)
    given = regularizer.given
    assert (given.hidden, given.tokens_BN, given.replaced_BN, given.prefix_length) == (hidden, tokens, replaced, 2)
    # Not among what it says that it reads.
    assert given.logits_BNV is None


def test_layers_are_those_of_all_regularizers_once_and_sorted() -> None:
    assert Objective({"a": Constant(1, [9, 0]), "b": Constant(1, [3, 9])}).layers == (0, 3, 9)
    assert Objective({}).layers == ()


def test_a_regularizer_that_is_no_module_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"'mine' is not an nn\.Module"):
        Objective({"mine": object()})  # type: ignore[dict-item]


def test_capture_collects_outputs_and_lets_go_afterwards() -> None:
    class Tupled(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x + 1, "else"

    blocks = nn.ModuleList([nn.Identity(), Tupled()])
    x = torch.randn(2, 3)
    with capture({0: blocks[0], 5: blocks[1]}) as hidden:
        blocks[1](blocks[0](x))
    assert sorted(hidden) == [0, 5]
    assert torch.equal(hidden[0], x)
    assert torch.equal(hidden[5], x + 1)
    blocks[0](x + 9)
    assert torch.equal(hidden[0], x)


def test_capture_lets_go_after_an_error_too() -> None:
    block = nn.Identity()
    with pytest.raises(RuntimeError), capture({0: block}):
        raise RuntimeError
    assert not block._forward_hooks
