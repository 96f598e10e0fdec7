from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from rearkit.planning.machine import Machine
from rearkit.planning.measure import parameter_counts
from rearkit.planning.scaling import Messages, messages, scaling
from rearkit.recipe.tables import Recipe

GPUS = Machine(8, 80 * 2.0**30, 312.0, 0.4)
FLOPS = 10**15


def recipe_of(tiny: Callable[..., Recipe], **train: Any) -> Recipe:
    recipe = tiny(train={"steps": 3600, "global_batch": 64, "precision": "bf16"} | train)
    return attrs.evolve(recipe, device="cuda", train=attrs.evolve(recipe.train, micro_batch=None))


# As a stand-in for NCCL counted them: tests/training/test_fake_cuda.py.
@pytest.mark.parametrize(
    ("stage", "precision", "accumulation", "reduced", "gathered"),
    [
        (0, "fp32", 1, 4, 0),
        (1, "bf16", 1, 4, 2),
        (1, "bf16", 2, 4, 2),
        (1, "fp32", 1, 4, 4),
        (1, "fp16", 1, 2, 2),
        (2, "bf16", 2, 8, 2),
        (3, "bf16", 2, 8, 8),
    ],
)
def test_messages_of_a_step(
    stage: int, precision: str, accumulation: int, reduced: int, gathered: int, tiny: Callable[..., Recipe]
) -> None:
    recipe = recipe_of(tiny, zero_stage=stage, precision=precision)
    assert messages(recipe, 1000, accumulation) == Messages(1000 * reduced, 1000 * gathered)


def test_what_a_rank_sends_in_a_ring() -> None:
    assert Messages(100, 100).sent(1, 1) == 0
    assert Messages(100, 100).sent(4, 1) == pytest.approx(0.75 * 300)
    assert Messages(100, 200).sent(4, 3) == pytest.approx(0.75 * 300)


def test_the_same_training_on_more_accelerators(tiny: Callable[..., Recipe]) -> None:
    recipe = recipe_of(tiny)
    one, eight, many, most = scaling(recipe, GPUS, FLOPS, (1, 8, 16, 512))
    # 10^15 operations at 0.4 × 312 × 10^12 a second.
    assert one.compute == pytest.approx(8.013, abs=1e-3) and one.communication == 0
    assert one.hours == pytest.approx(8.013, abs=1e-3) and one.utilisation == 0.4
    assert (eight.micro_batch * eight.accumulation, many.micro_batch * many.accumulation) == (8, 4)
    assert eight.compute == pytest.approx(one.compute / 8)
    sent = messages(recipe, parameter_counts(recipe).trained, 1).sent(8, 1)
    assert eight.communication == pytest.approx(sent / 300e9)
    # Of more than a node, the slowest link counts.
    assert many.communication > 5 * eight.communication
    assert most.micro_batch == 0 and "64 samples don't divide over 512 ranks" in most.why


def test_it_is_said_where_more_no_longer_help(tiny: Callable[..., Recipe]) -> None:
    slow = attrs.evolve(GPUS, between=1e3)
    near, far = scaling(recipe_of(tiny), slow, FLOPS, (8, 64))
    assert near.utilisation > 0.99 * 0.4 and "past its scale" not in near.why
    assert far.utilisation < 0.8 * 0.4 and far.why.startswith("past its scale")
    assert far.utilisation == pytest.approx(0.4 * far.compute / (far.compute + far.communication))
