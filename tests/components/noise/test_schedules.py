from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rearkit.components.noise.schedules import FixedNoise, LinearNoise, NoNoise, RandomNoise, Schedule
from rearkit.contracts import NoiseSchedule
from rearkit.registry import plugins

share = st.floats(0, 1)
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def linear_schedules(draw: st.DrawFn) -> LinearNoise:
    span = sorted(draw(st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=2, max_size=2, unique=True)))
    return LinearNoise(start_level=draw(share), end_level=draw(share), span_start=span[0], span_end=span[1])


any_schedule = st.one_of(
    st.just(NoNoise()), st.builds(FixedNoise, rate=share), st.builds(RandomNoise, level=share), linear_schedules()
)


@given(linear_schedules(), st.integers(1, 60))
def test_the_linear_level_follows_its_closed_form_over_a_whole_run(schedule: LinearNoise, steps: int) -> None:
    for step in range(steps + 1):
        progress = step / steps
        if progress <= schedule.span_start:
            expected = schedule.start_level
        elif progress >= schedule.span_end:
            expected = schedule.end_level
        else:
            slope = (schedule.end_level - schedule.start_level) / (schedule.span_end - schedule.span_start)
            expected = schedule.start_level + slope * (progress - schedule.span_start)
        assert schedule.level(progress) == pytest.approx(expected, abs=1e-9)


@given(linear_schedules(), st.integers(2, 60))
def test_the_linear_level_is_monotone_and_between_its_ends(schedule: LinearNoise, steps: int) -> None:
    levels = [schedule.level(step / steps) for step in range(steps + 1)]
    low, high = sorted((schedule.start_level, schedule.end_level))
    assert all(low - 1e-12 <= level <= high + 1e-12 for level in levels)
    rising = schedule.end_level >= schedule.start_level
    for before, after in itertools.pairwise(levels):
        assert (after >= before - 1e-12) if rising else (after <= before + 1e-12)
    assert levels[0] == schedule.start_level
    assert levels[-1] == schedule.end_level


def test_the_default_is_the_published_codes_fall_from_one_to_zero_at_three_quarters() -> None:
    schedule = LinearNoise()
    assert [schedule.level(t) for t in (0, 0.25, 0.5, 0.75, 0.9, 1)] == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0])


@given(any_schedule, share, st.integers(1, 50), seeds)
def test_rates_have_the_contracts_shape_and_range(schedule: Schedule, progress: float, batch: int, seed: int) -> None:
    assert isinstance(schedule, NoiseSchedule)
    rates = schedule.rates(progress, batch, generator(seed))
    assert rates.shape == (batch,)
    assert rates.dtype == torch.float32
    assert 0 <= rates.min() <= rates.max() <= 1


@given(any_schedule, share, seeds)
def test_rates_come_from_the_generator_alone(schedule: Schedule, progress: float, seed: int) -> None:
    torch.manual_seed(seed)
    first = schedule.rates(progress, 8, generator(seed))
    before = torch.get_rng_state()
    second = schedule.rates(progress, 8, generator(seed))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@given(st.floats(0.01, 1), share)
def test_fixed_noise_gives_every_sample_the_same_rate_all_through(rate: float, progress: float) -> None:
    rates = FixedNoise(rate=rate).rates(progress, 5, generator())
    assert torch.equal(rates, torch.full((5,), rate))


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_random_noise_is_uniform_below_its_level_all_through(progress: float) -> None:
    rates = RandomNoise(level=0.5).rates(progress, 20_000, generator()).double()
    assert rates.mean().item() == pytest.approx(0.25, abs=0.005)
    assert rates.std().item() == pytest.approx(0.5 / 12**0.5, abs=0.005)
    assert 0.49 < rates.max() <= 0.5


def test_linear_noise_is_uniform_below_the_level_of_the_moment() -> None:
    rates = LinearNoise().rates(0.375, 20_000, generator()).double()  # half-way down: m = 0.5
    assert rates.mean().item() == pytest.approx(0.25, abs=0.005)
    assert 0.49 < rates.max() <= 0.5


def test_no_noise_is_zero() -> None:
    assert not NoNoise().rates(0.5, 7, generator()).any()


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2)])
def test_a_span_that_does_not_go_forward_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"span_end .* must be greater than span_start"):
        LinearNoise(span_start=start, span_end=end)


@pytest.mark.parametrize("level", [-0.1, 1.1, float("nan")])
def test_rates_that_are_no_probabilities_are_refused(level: float) -> None:
    for make in (
        lambda: FixedNoise(rate=level),
        lambda: RandomNoise(level=level),
        lambda: LinearNoise(start_level=level),
        lambda: LinearNoise(end_level=level),
    ):
        with pytest.raises(ValueError, match="expected"):
            make()


@pytest.mark.parametrize("name", ["none", "fixed", "random", "linear"])
def test_every_schedule_can_be_named_by_a_recipe(name: str) -> None:
    component = plugins.find("noise", name)
    assert isinstance(component.build(component.settings()), NoiseSchedule)
