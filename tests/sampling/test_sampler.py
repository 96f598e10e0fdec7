from __future__ import annotations

import copy
import itertools
import math
import threading
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rearkit.errors import DivergedError, RearkitError
from rearkit.layers.packed_linear import can_halve
from rearkit.model import Model
from rearkit.recipe.tables import SampleTable
from rearkit.sampling.drawing import draw, guidance_scales
from rearkit.sampling.sampler import Sampler, balanced_classes, sample, sample_tokens, sample_uniforms

LAST = 1 - 2.0**-53  # the largest number below 1, and the largest that a generator gives
EVENLY = torch.arange(0, 1, 1 / 997, dtype=torch.float64)


@st.composite
def logits(draw_from: st.DrawFn, most: int = 12) -> Tensor:
    """Distinct logits of one row, (V,)."""
    values = draw_from(st.lists(st.integers(-60, 60), min_size=1, max_size=most, unique=True))
    return torch.tensor(values, dtype=torch.float32) / 10


def reached(row: Tensor, **how: float) -> set[int]:
    """Codes that evenly spread uniforms, and the outermost ones, lead to."""
    uniforms = torch.cat([torch.tensor([0, LAST], dtype=torch.float64), EVENLY])
    return set(draw(row.expand(len(uniforms), -1), uniforms, **how).tolist())


def chi_square(tokens: Tensor, expected: Tensor) -> float:
    """Statistic of observed codes against expected probabilities, over its degrees of freedom."""
    observed = tokens.bincount(minlength=len(expected)).double()
    counts = expected.double() * len(tokens)
    return float(((observed - counts) ** 2 / counts)[counts > 0].sum() / max(1, (counts > 0).sum() - 1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_codes_are_as_frequent_as_the_softmax_says(temperature: float) -> None:
    row = torch.randn(20, generator=torch.Generator().manual_seed(3))
    uniforms = torch.rand(50_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    tokens = draw(row.expand(len(uniforms), -1), uniforms, temperature)
    # 19 degrees of freedom: the statistic is above 2.3 of them once in a thousand seeds.
    assert chi_square(tokens, (row / temperature).softmax(-1)) < 2.3
    assert chi_square(tokens, (row / temperature / 1.2).softmax(-1)) > 2.3


@pytest.mark.parametrize(("how", "kept"), [({"top_k": 3}, 3), ({"top_p": 0.5}, None)])
def test_among_the_codes_kept_frequencies_are_those_of_the_softmax(how: dict[str, float], kept: int | None) -> None:
    row = torch.randn(10, generator=torch.Generator().manual_seed(3))
    probability = row.softmax(-1)
    if kept is None:
        ranked = probability.sort(descending=True).values
        kept = int((ranked.cumsum(-1) < 0.5).sum()) + 1
    least = probability.topk(kept).values[-1]
    expected = torch.where(probability >= least, probability, 0)
    uniforms = torch.rand(50_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert chi_square(draw(row.expand(len(uniforms), -1), uniforms, **how), expected / expected.sum()) < 4


@given(logits(), st.floats(0, LAST))
def test_a_draw_inverts_the_cumulative_distribution(row: Tensor, uniform: float) -> None:
    (code,) = draw(row[None], torch.tensor([uniform], dtype=torch.float64)).tolist()
    cumulative = np.concatenate([[0], np.cumsum(row.double().softmax(-1).numpy())])
    assert cumulative[code] - 1e-12 <= uniform <= cumulative[code + 1] + 1e-12


@given(logits(), st.integers(1, 14))
def test_top_k_keeps_exactly_the_k_likeliest(row: Tensor, k: int) -> None:
    expected = set(row.sort(descending=True).indices[:k].tolist())
    kept = reached(row, top_k=k)
    assert kept <= expected
    likely = {i for i in expected if row.double().softmax(-1)[i] > 1 / 500}
    assert likely <= kept


@given(logits(), st.floats(0.01, 0.99))
def test_top_p_keeps_exactly_the_least_set_of_likeliest_codes_that_reaches_p(row: Tensor, p: float) -> None:
    probability = row.double().softmax(-1)
    expected: set[int] = set()
    total = 0.0
    for code in row.sort(descending=True).indices.tolist():
        if abs(total - p) < 1e-9:
            return  # too close to call
        if total >= p:
            break
        expected.add(code)
        total += probability[code].item()
    kept = reached(row, top_p=p)
    assert kept <= expected
    assert {i for i in expected if probability[i] > 1 / 500} <= kept


@given(logits(), st.floats(0, LAST))
def test_top_k_of_one_is_the_argmax(row: Tensor, uniform: float) -> None:
    assert draw(row[None], torch.tensor([uniform], dtype=torch.float64), top_k=1).item() == row.argmax()


@given(logits(), st.floats(2.0**-53, LAST), st.sampled_from([1e-3, 1e-9, 1e-100, 1e-307]))
def test_a_temperature_near_zero_is_the_argmax(row: Tensor, uniform: float, temperature: float) -> None:
    assert draw(row[None], torch.tensor([uniform], dtype=torch.float64), temperature).item() == row.argmax()


@given(logits(), st.floats(0, LAST))
def test_a_temperature_of_zero_is_the_argmax(row: Tensor, uniform: float) -> None:
    assert draw(row[None], torch.tensor([uniform], dtype=torch.float64), temperature=0).item() == row.argmax()


@given(logits(), st.floats(0, LAST), st.floats(1e-6, 1e-3))
def test_a_top_p_near_zero_is_the_argmax(row: Tensor, uniform: float, p: float) -> None:
    assert draw(row[None], torch.tensor([uniform], dtype=torch.float64), top_p=p).item() == row.argmax()


@given(
    logits(40),
    st.sampled_from([0.0, 2.0**-53, 0.5, LAST]),
    st.integers(0, 5),
    st.floats(0.01, 1),
    st.floats(0.1, 10),
    st.data(),
)
def test_a_code_without_probability_is_never_drawn(
    row: Tensor, uniform: float, k: int, p: float, temperature: float, data: st.DataObject
) -> None:
    shut = data.draw(st.lists(st.integers(0, len(row) - 1), max_size=len(row) - 1))
    row = row.clone()
    row[shut] = -torch.inf
    if row.isinf().all():
        return
    (code,) = draw(row[None], torch.tensor([uniform], dtype=torch.float64), temperature, k, p).tolist()
    assert 0 <= code < len(row)
    assert not row[code].isinf()


def test_rows_are_drawn_each_by_its_own_uniform() -> None:
    rows = torch.randn(64, 9, generator=torch.Generator().manual_seed(0))
    uniforms = torch.rand(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = draw(rows, uniforms, 0.7, 5, 0.9)
    alone = [draw(rows[i : i + 1], uniforms[i : i + 1], 0.7, 5, 0.9).item() for i in range(64)]
    assert together.tolist() == alone
    assert together.dtype == torch.int64


def test_all_codes_kept_is_no_restriction() -> None:
    rows, uniforms = torch.randn(64, 9), torch.rand(64, dtype=torch.float64)
    plain = draw(rows, uniforms)
    for how in ({"top_k": 9}, {"top_k": 100}, {"top_p": 1.0}):
        assert torch.equal(draw(rows, uniforms, **how), plain)


# Guidance


def test_the_other_schedules_are_a_line_and_a_constant() -> None:
    assert guidance_scales(4, 5.0, schedule="linear") == [1.0, 2.0, 3.0, 4.0]
    assert guidance_scales(3, 5.0, schedule="constant") == [5.0, 5.0, 5.0]


@given(st.integers(1, 300), st.floats(0, 30), st.floats(0.1, 5))
def test_guidance_follows_its_closed_form_from_one_towards_s(count: int, scale: float, power: float) -> None:
    scales = guidance_scales(count, scale, power)
    assert len(scales) == count
    assert scales[0] == 1
    for i, value in enumerate(scales):
        assert value == pytest.approx(1 + (scale - 1) * math.sin(math.pi / 2 * (i / count) ** power) ** 2)
    rising = scales if scale >= 1 else scales[::-1]
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(rising))
    assert all(min(1, scale) - 1e-9 <= value <= max(1, scale) + 1e-9 for value in scales)


# A whole sampler


def table(**changes: object) -> SampleTable:
    return SampleTable(**({"num_images": 64, "batch": 64} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 7, 11, 12, 63])
def test_tokens_do_not_depend_on_the_batch(batch: int, guidance_scale: float, model: Model) -> None:
    classes = balanced_classes(64, 10)
    whole = sample(model, classes, table(guidance_scale=guidance_scale))
    parts = sample(model, classes, table(guidance_scale=guidance_scale, batch=batch))
    assert np.array_equal(whole.tokens, parts.tokens)
    assert np.array_equal(whole.images, parts.images)
    assert len(np.unique(whole.tokens, axis=0)) > 32  # or equality shows little


def test_a_stream_taken_up_in_the_middle_goes_on_as_if_never_left(model: Model) -> None:
    classes = balanced_classes(20, 10)
    whole = sample(model, classes, table(batch=4))
    rest = list(Sampler(model, table(batch=3)).stream(classes[8:], first=8))
    assert np.array_equal(np.concatenate([part.tokens for part in rest]), whole.tokens[8:])


def test_each_sample_has_its_own_class_scale_and_number(model: Model) -> None:
    classes, scales, numbers = [3, 0, 3, 9], [1.0, 4.0, 7.5, 1.0], [11, 4, 11, 0]
    together = sample(model, classes, table(), numbers=numbers, guidance_scale=scales)
    for i in range(4):
        alone = sample(model, classes[i : i + 1], table(guidance_scale=scales[i]), numbers=numbers[i : i + 1])
        assert np.array_equal(alone.tokens[0], together.tokens[i])
        assert np.array_equal(alone.images[0], together.images[i])
    assert not np.array_equal(together.tokens[0], together.tokens[2])  # the same but for the scale


def test_a_schedule_and_greedy_choice_are_taken_from_the_table(model: Model) -> None:
    constant = sample(model, [1, 2], table(guidance_scale=6.0, guidance_schedule="constant"))
    assert not np.array_equal(constant.tokens, sample(model, [1, 2], table(guidance_scale=6.0)).tokens)
    greedy = sample(model, [1, 1], table(temperature=0.0))
    assert np.array_equal(greedy.tokens[0], greedy.tokens[1])
    assert np.array_equal(greedy.tokens, sample(model, [1, 1], table(temperature=0.0), seed=5).tokens)


def test_a_stream_that_is_left_early_stops_generating(model: Model) -> None:
    before = threading.active_count()
    stream = Sampler(model, table(batch=2)).stream([0] * 1000)
    next(stream)
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("how", [{"numbers": [1]}, {"guidance_scale": [1.0, 2.0, 3.0]}])
def test_another_count_of_numbers_or_scales_is_refused(how: dict[str, list[float]], model: Model) -> None:
    with pytest.raises(ValueError, match="2 classes, but"):
        sample(model, [0, 1], table(), **how)  # type: ignore[arg-type]


def test_seed_and_class_decide_a_sample(model: Model) -> None:
    first = sample(model, [3] * 8, table())
    assert np.array_equal(first.tokens, sample(model, [3] * 8, table()).tokens)
    assert not np.array_equal(first.tokens, sample(model, [3] * 8, table(), seed=1).tokens)
    assert not np.array_equal(first.tokens, sample(model, [4] * 8, table()).tokens)
    assert len(np.unique(first.tokens, axis=0)) == 8  # samples of a class differ from one another


def test_without_guidance_the_unconditional_half_is_not_computed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    start = type(model.backbone).start

    def noting(self: object, classes_B: Tensor) -> object:
        rows.append(len(classes_B))
        return start(self, classes_B)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model.backbone), "start", noting)
    sample(model, [0, 1, 2], table())
    sample(model, [0, 1, 2], table(guidance_scale=2.0))
    assert rows == [3, 6]


def test_decoding_with_a_cache_is_teacher_forced_prediction_step_by_step(model: Model) -> None:
    """Sample again without cache: at each step the whole sequence so far, conditional and not, is recomputed."""
    how = table(guidance_scale=4.0, guidance_power=1.5, temperature=0.9, top_k=8, top_p=0.95)
    classes, N = torch.tensor([1, 5, 9]), model.space.num_tokens
    uniforms = torch.from_numpy(np.stack([sample_uniforms(0, number, N) for number in range(3)]))
    tokens = torch.zeros(3, N, dtype=torch.int64)
    scales = guidance_scales(N, 4.0, 1.5)
    with torch.no_grad():
        for i in range(N):
            conditional, _ = model.backbone(tokens, classes)
            unconditional, _ = model.backbone(tokens, torch.full_like(classes, 10))
            guided = unconditional[:, i] + (conditional[:, i] - unconditional[:, i]) * scales[i]
            tokens[:, i] = draw(guided, uniforms[:, i], 0.9, 8, 0.95)
    assert torch.equal(sample_tokens(model.backbone, classes, uniforms, 10, how), tokens)
    assert np.array_equal(sample(model, classes.tolist(), how).tokens, tokens.numpy())


def test_samples_are_the_decoded_tokens_as_bytes_channels_last(model: Model) -> None:
    made = sample(model, [0, 1, 2], table())
    assert made.images.shape == (3, 8, 8, 3)
    assert made.images.dtype == np.uint8
    assert made.classes.tolist() == [0, 1, 2]
    with torch.no_grad():
        decoded = torch.cat([model.tokenizer.decode(row) for row in torch.from_numpy(made.tokens).split(1)])
    assert np.array_equal((decoded.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8), made.images)


def test_the_recipes_own_table_and_seed_are_used_where_none_is_given(model: Model) -> None:
    recipe = attrs.evolve(model.recipe, sample=table(guidance_scale=3.0), seed=5)
    default = sample(attrs.evolve(model, recipe=recipe), [0, 1])
    assert np.array_equal(default.tokens, sample(model, [0, 1], table(guidance_scale=3.0), seed=5).tokens)


@pytest.mark.parametrize("classes", [[10], [-1], [0, 99]])
def test_classes_out_of_range_are_refused(classes: list[int], model: Model) -> None:
    with pytest.raises(ValueError, match="classes must lie in 0 to 9"):
        sample(model, classes, table())


@pytest.mark.parametrize("classes", [[0.5, 1.0], torch.tensor([0.5]), 3, "01"])
def test_classes_are_whole_numbers(classes: Any, model: Model) -> None:
    with pytest.raises(ValueError, match="classes must be a list of whole numbers; got"):
        sample(model, classes)


@pytest.mark.filterwarnings("error")
def test_classes_may_be_a_tensor_or_an_array(model: Model) -> None:
    expected = sample(model, [0, 1]).images
    for classes in (torch.arange(2), np.arange(2)):
        assert (sample(model, classes).images == expected).all()


def test_no_classes_are_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="no classes"):
        sample(model, [], table())


@given(st.integers(1, 100), st.integers(1, 20))
def test_balanced_classes_are_each_as_often_as_the_others(count: int, classes: int) -> None:
    labels = balanced_classes(count, classes)
    counts = np.bincount(labels, minlength=classes)
    assert len(labels) == count
    assert counts.max() - counts.min() <= 1


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.integers(1, 30))
def test_uniforms_are_a_function_of_seed_and_number(seed: int, number: int, count: int) -> None:
    first = sample_uniforms(seed, number, count)
    assert np.array_equal(first, sample_uniforms(seed, number, count))
    assert first.dtype == np.float64
    assert 0 <= first.min() <= first.max() < 1
    assert not np.array_equal(first, sample_uniforms(seed, number + 1, count))
    assert not np.array_equal(first, sample_uniforms(seed + 1, number, count))


def test_bfloat16_is_near_and_leaves_the_model_as_it_is(model: Model) -> None:
    plain, half = Sampler(model, table()), Sampler(model, table(precision="bf16"))
    classes = torch.arange(10)
    (expected, _), (found, _) = plain.decoder.start(classes), half.decoder.start(classes)
    assert expected.dtype == torch.float32 and found.dtype == torch.bfloat16
    assert not torch.equal(found.float(), expected)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.3)
    assert len(sample(model, [1, 2, 3], table(precision="bf16", guidance_scale=2.0)).tokens) == 3


@pytest.mark.skipif(not can_halve(), reason="this torch or this machine has no FBGEMM")
def test_half_weights_are_near_and_do_not_depend_on_the_batch(model: Model) -> None:
    plain, half = (sample_tokens_of(model, precision) for precision in ("fp32", "fp16-weights"))
    assert (plain == half).mean() > 0.9  # greedy: few choices hang on a weight's eleventh bit
    classes = list(range(7))
    whole = sample(model, classes, table(precision="fp16-weights", guidance_scale=2.0, batch=7))
    single = sample(model, classes, table(precision="fp16-weights", guidance_scale=2.0, batch=1))
    assert np.array_equal(whole.tokens, single.tokens)


def sample_tokens_of(model: Model, precision: str) -> np.ndarray:
    return sample(model, list(range(10)), table(precision=precision, temperature=0.0)).tokens


def test_half_weights_where_there_are_none_are_an_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rearkit.sampling.sampler.can_halve", lambda: False)
    with pytest.raises(RearkitError, match="FBGEMM"):
        Sampler(model, table(precision="fp16-weights"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_not_drawn_from(bad: float, model: Model) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.backbone.parameters()).fill_(bad)
    with pytest.raises(DivergedError, match="the backbone's logits are NaN or infinite"):
        sample(broken, [0, 1], table(), 0)
