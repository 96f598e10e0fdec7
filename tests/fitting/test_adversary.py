"""The discriminator's terms against their formulas."""

from __future__ import annotations

import pytest
import torch

from rearkit.contracts import FitPass
from rearkit.errors import DivergedError
from rearkit.fitting.adversary import Adversary, PatchDiscriminator, most_layers
from rearkit.recipe.fit_table import AdversarialTable

CPU = torch.device("cpu")


def adversary(**settings: object) -> Adversary:
    return Adversary(AdversarialTable(channels=8, layers=1, **settings), 0, CPU)  # type: ignore[arg-type]


def rebuilt(weight: torch.Tensor) -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * weight


def test_a_discriminator_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    first = adversary()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    second = adversary()
    for a, b in zip(first.discriminator.parameters(), second.discriminator.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("layers", "side"), [(1, 7), (2, 6), (3, 2)])
def test_it_judges_patches(layers: int, side: int) -> None:
    judged = PatchDiscriminator(8, layers)(torch.rand(2, 3, 16 if layers < 3 else 32, 16 if layers < 3 else 32))
    expected = {1: 6, 2: 2, 3: 2}[layers]
    assert judged.shape == (2, 1, expected, expected)


@pytest.mark.parametrize("side", [3, 5, 6, 8, 11, 12, 16, 31, 32, 48, 64])
def test_the_most_layers_leave_something_to_judge_and_one_more_does_not(side: int) -> None:
    most = most_layers(side)
    if most:
        assert min(PatchDiscriminator(8, most)(torch.rand(1, 3, side, side)).shape) == 1
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        PatchDiscriminator(8, most + 1)(torch.rand(1, 3, side, side))


def test_channels_that_the_norms_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"channels \(12\) must be a multiple of 8"):
        AdversarialTable(channels=12)


def test_the_adaptive_weight_makes_both_gradients_equally_long() -> None:
    own = adversary(weight=1.0)
    weight = torch.full((3, 1, 1), 0.7, requires_grad=True)
    images = rebuilt(weight)
    loss = 5 * images.square().mean()
    term, parts = own.opinion(FitPass(loss, {}, images, weight), loss, 1.0)
    (others,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (adversarial,) = torch.autograd.grad(term, weight)
    # Up to what keeps the divisor from zero, which shortens it.
    plain = adversarial.norm() / parts["adversarial_weight"]
    assert adversarial.norm().item() == pytest.approx((others.norm() * plain / (plain + 1e-4)).item(), rel=1e-5)
    assert term.item() == pytest.approx((parts["adversarial_weight"] * parts["adversarial"]).item())
    assert not any(p.requires_grad for p in own.discriminator.parameters())


def test_without_adaptation_the_weight_is_the_recipes() -> None:
    own = adversary(weight=0.25, adaptive=False)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    images = rebuilt(weight)
    term, _ = own.opinion(FitPass(images.mean(), {}, images, weight), images.mean(), 1.0)
    assert term.item() == pytest.approx(-0.25 * own.discriminator(images).mean().item())


def test_it_learns_to_tell_images_from_flat_ones() -> None:
    own = adversary(lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        real = torch.rand(8, 3, 16, 16, generator=generator)
        parts = own.learn(real, torch.full_like(real, 0.5), 1.0, "fp32")
    assert parts["discriminator_right"] > 0.9
    assert parts["discriminator"] < 0.5


def test_the_r1_penalty_is_half_the_squared_gradient_on_real_images() -> None:
    real = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    own = adversary(r1=2.0)
    seen = real.clone().requires_grad_(True)
    judged = own.discriminator(seen)
    (gradient,) = torch.autograd.grad(judged.mean((1, 2, 3)).sum(), seen)
    penalty = gradient.square().sum((1, 2, 3)).mean()
    losses = []
    original = torch.Tensor.backward

    def noting(self: torch.Tensor, *given: object, **more: object) -> None:
        losses.append(self.item())
        original(self, *given, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", noting)
        parts = own.learn(real, real * 0.5, 1.0, "fp32")
    # 2.0 / 2 times the penalty.
    assert losses[0] == pytest.approx((parts["discriminator"] + penalty).item(), rel=1e-5)


def test_lecam_compares_with_the_other_kinds_average() -> None:
    own = adversary(lecam=1.0)
    real, rebuilt = torch.tensor([1.0, 3.0]), torch.tensor([-1.0])
    # Averages begin at 0 and take a hundredth of the means 2 and -1.
    expected = ((real + 0.01).square().mean() + (0.02 - rebuilt).square().mean()).item()
    assert own._lecam(real, rebuilt, 1.0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted_and_said(
    bad: float, capsys: pytest.CaptureFixture[str]
) -> None:
    own = adversary(lecam=1.0, max_skipped_steps=2)
    real = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def learn(step: int, images: torch.Tensor) -> float:
        parts = own.learn(images, real * 0.5, 1.0, "fp32")
        own.after_step(step)
        return parts["discriminator_skipped"].item()

    assert learn(1, real) == 0
    before = [value.clone() for value in (*own.discriminator.parameters(), own.usual)]
    assert learn(2, real * bad) == 1
    after = (*own.discriminator.parameters(), own.usual)
    assert all(map(torch.equal, before[:-1], after))
    assert own.usual.isfinite().all()
    said = "tokenizer: step 2: the discriminator's loss or gradient is NaN or infinite; its step is skipped (1 of at"
    assert said in capsys.readouterr().out.replace("\n", " ")
    assert learn(3, real) == 1 and not torch.equal(before[0], after[0])
    assert learn(4, real * bad) == 2
    with pytest.raises(
        DivergedError, match=r"step 5: .* 3 of its steps skipped, more than the 2 that \[tokenizer\.fit"
    ):
        learn(5, real * bad)
