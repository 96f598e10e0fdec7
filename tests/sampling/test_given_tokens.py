"""Tokens that are given come back as they are; the rest is drawn after them, whatever the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rearkit.model import Model
from rearkit.recipe.tables import SampleTable
from rearkit.sampling.drawing import draw, guidance_scales
from rearkit.sampling.sampler import sample, sample_tokens, sample_uniforms
from rearkit.sampling.stepping import DRAWN, Forced, fixed_tokens

COUNT, N, V = 20, 16, 12
CLASSES = [k % 10 for k in range(COUNT)]


@pytest.fixture(scope="module")
def given() -> np.ndarray:
    return np.random.default_rng(1).integers(0, V, (COUNT, N))


@pytest.fixture(scope="module")
def known() -> np.ndarray:
    return np.random.default_rng(2).random((COUNT, N)) < 0.5


def table(**changes: object) -> SampleTable:
    return SampleTable(**({"num_images": COUNT, "batch": COUNT} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_given_tokens_come_back_and_the_rest_depends_on_them_alone(
    guidance_scale: float, model: Model, given: np.ndarray, known: np.ndarray
) -> None:
    how = table(guidance_scale=guidance_scale)
    whole = sample(model, CLASSES, how, given=given, known=known)
    assert np.array_equal(whole.tokens[known], given[known])
    assert not np.array_equal(whole.tokens[~known], sample(model, CLASSES, how).tokens[~known])
    # What stands at the places to be drawn is not read.
    other = np.where(known, given, V + 5)
    assert np.array_equal(sample(model, CLASSES, how, given=other, known=known).tokens, whole.tokens)
    for batch in (1, 7):
        parts = sample(model, CLASSES, table(guidance_scale=guidance_scale, batch=batch), given=given, known=known)
        assert np.array_equal(parts.tokens, whole.tokens)
        assert np.array_equal(parts.images, whole.images)


def test_the_rest_is_what_teacher_forcing_predicts_step_by_step(
    model: Model, given: np.ndarray, known: np.ndarray
) -> None:
    how = table(guidance_scale=4.0, temperature=0.9, top_k=8)
    uniforms = torch.from_numpy(np.stack([sample_uniforms(0, number, N) for number in range(COUNT)]))
    fixed, mask = torch.from_numpy(given), torch.from_numpy(known)
    classes = torch.tensor(CLASSES)
    tokens = torch.zeros(COUNT, N, dtype=torch.int64)
    scales = guidance_scales(N, 4.0)
    with torch.no_grad():
        for i in range(N):
            conditional, _ = model.backbone(tokens, classes)
            unconditional, _ = model.backbone(tokens, torch.full_like(classes, 10))
            guided = unconditional[:, i] + (conditional[:, i] - unconditional[:, i]) * scales[i]
            drawn = draw(guided, uniforms[:, i], 0.9, 8)
            tokens[:, i] = torch.where(mask[:, i], fixed[:, i], drawn)
    assert np.array_equal(sample(model, CLASSES, how, given=given, known=known).tokens, tokens.numpy())


def test_with_nothing_known_it_is_plain_sampling_and_with_all_known_the_tokens(model: Model, given: np.ndarray) -> None:
    none, every = np.zeros(N, bool), np.ones(N, bool)
    plain = sample(model, CLASSES, table())
    assert np.array_equal(sample(model, CLASSES, table(), given=given, known=none).tokens, plain.tokens)
    assert np.array_equal(sample(model, CLASSES, table(), given=given, known=every).tokens, given)


def test_one_row_is_for_all(model: Model, given: np.ndarray) -> None:
    first = np.arange(N) < 8
    alike = sample(model, [3] * 4, table(), given=given[0], known=first)
    assert np.array_equal(alike.tokens[:, :8], np.tile(given[0, :8], (4, 1)))
    assert len(np.unique(alike.tokens, axis=0)) == 4


def test_tokens_as_samples_have_them_are_taken(model: Model) -> None:
    made = sample(model, [1, 2], table())
    first = torch.arange(N) < 5
    again = sample(model, [1, 2], table(), given=made.tokens.astype(np.uint16), known=first)
    assert np.array_equal(again.tokens, made.tokens)


class Recorded:
    """A decoder like one that replays graphs: what it reads and what it returns lie at fixed addresses."""

    def __init__(self, inner: Any, rows: int) -> None:
        self.inner = inner
        self.tokens_B = torch.zeros(rows, dtype=torch.int64)
        self.logits_BV = torch.zeros(rows, V)

    def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
        logits_BV, cache = self.inner.start(classes_B)
        return self.logits_BV.copy_(logits_BV), cache

    def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
        self.tokens_B.copy_(tokens_B)
        return self.logits_BV.copy_(self.inner.step(self.tokens_B, cache))


def test_a_decoder_that_replays_gets_the_given_tokens(model: Model, given: np.ndarray, known: np.ndarray) -> None:
    how = table(guidance_scale=3.0)
    uniforms = torch.from_numpy(np.stack([sample_uniforms(0, number, N) for number in range(COUNT)]))
    fixed = fixed_tokens(given, known, (COUNT, N), V)
    assert fixed is not None
    recorded = Recorded(model.backbone, 2 * COUNT)
    expected = sample(model, CLASSES, how, given=given, known=known).tokens
    for _ in range(2):
        forced = Forced(recorded, fixed)
        found = forced.whole(sample_tokens(forced, torch.tensor(CLASSES), uniforms, 10, how))
        assert np.array_equal(found.numpy(), expected)


def test_choosing_given_tokens_reads_none_of_them() -> None:
    """On the meta device, where tensors have no content, a look at one is an error, as it would stop a GPU."""

    class Shapes:
        def start(self, classes_B: Tensor) -> tuple[Tensor, Any]:
            return torch.empty(len(classes_B), V, device="meta"), None

        def step(self, tokens_B: Tensor, cache: Any) -> Tensor:
            return torch.empty(len(tokens_B), V, device="meta")

    forced = Forced(Shapes(), torch.empty(3, N, dtype=torch.int64, device="meta"))
    forced.start(torch.empty(6, dtype=torch.int64, device="meta"))
    for _ in range(N - 1):
        assert forced.step(torch.empty(6, dtype=torch.int64, device="meta"), None).shape == (6, V)
    assert forced.whole(torch.empty(3, N, dtype=torch.int64, device="meta")).shape == (3, N)


def test_where_nothing_is_known_a_token_is_to_be_drawn() -> None:
    found = fixed_tokens([3, 4, 99], [True, False, False], (2, 3), 12)
    assert found is not None and found.tolist() == [[3, DRAWN, DRAWN]] * 2


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"given": [0] * N}, "go together"),
        ({"given": [0] * 3, "known": [True] * 3}, r"given has the shape \(3,\); expected \(20, 16\), or \(16,\)"),
        ({"given": [V] * N, "known": [True] * N}, "given tokens must lie in 0 to 11"),
        ({"given": [-1] * N, "known": [True] * N}, "given tokens must lie in 0 to 11"),
        ({"given": [0.5] * N, "known": [True] * N}, "whole numbers"),
        ({"given": [1] * N, "known": [1] * N}, "booleans"),
    ],
)
def test_what_does_not_fit_is_refused(how: dict[str, object], message: str, model: Model) -> None:
    with pytest.raises(ValueError, match=message):
        sample(model, CLASSES, table(), **how)  # type: ignore[arg-type]
