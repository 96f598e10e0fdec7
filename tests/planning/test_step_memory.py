from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rearkit.planning.machine import Machine
from rearkit.planning.measure import StepMemory
from rearkit.planning.plan import make_plan
from rearkit.planning.step_memory import GIB, Settings, rank_memory
from rearkit.recipe.loading import load_recipe

MEASURE = Path(__file__).parents[1] / "helpers" / "measured.py"
STEP = StepMemory(activations=1000, gradients=400, both=1100)
OPTIONS: dict[str, Any] = {
    "value_bytes": 2,
    "sum_bytes": 2,
    "accumulates": False,
    "averages": False,
    "zero": {"reduce_bucket_size": 10},
}


# Hidden width, blocks, batch, dropout; from activations that are nine tenths of it to weights that are most of it.
@pytest.mark.parametrize(
    ("width", "blocks", "batch", "dropout"),
    [
        pytest.param(64, 4, 16, 0.1, marks=pytest.mark.slow),
        pytest.param(128, 3, 8, 0.0, marks=pytest.mark.slow),
        (256, 2, 2, 0.0),
        pytest.param(256, 2, 2, 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_plan_agrees_with_what_training_on_a_cpu_allocates(
    width: int, blocks: int, batch: int, dropout: float, tiny_recipe: Callable[..., dict[str, Any]]
) -> None:
    content = tiny_recipe(
        backbone={
            "hidden_size": width, "num_layers": blocks, "dropout": dropout, "attention_dropout": dropout,
        },
        tokenizer={"image_size": 32, "channel_mult": [1, 1, 1]},
        train={"global_batch": batch, "zero_stage": 0},
    )  # fmt: skip
    plan = make_plan(load_recipe(content), Machine(1, GIB, 1.0, 1.0, cuda=False))
    command = [sys.executable, str(MEASURE), json.dumps(content), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["events"] > 1000  # the allocator was listened to
    assert plan.memory[batch][0].total == pytest.approx(measured["peak"], rel=0.15)


@pytest.mark.parametrize(
    ("width", "batch", "scale"),
    [
        pytest.param(512, 16, 2.0, marks=pytest.mark.slow),
        pytest.param(384, 48, 2.0, marks=pytest.mark.slow),
        pytest.param(768, 2, 1.0, marks=pytest.mark.slow),
    ],
)
def test_a_plan_agrees_with_what_sampling_on_a_cpu_takes(
    width: int, batch: int, scale: float, tiny_recipe: Callable[..., dict[str, Any]]
) -> None:
    content = tiny_recipe(
        backbone={"hidden_size": width, "num_layers": 6, "num_heads": 8},
        tokenizer={"image_size": 32, "channel_mult": [1, 1, 1]},
        sample={"batch": batch, "guidance_scale": scale},
    )
    plan = make_plan(load_recipe(content), Machine(1, GIB, 1.0, 1.0, cuda=False))
    command = [sys.executable, str(MEASURE.with_name("sampled.py")), json.dumps(tiny_recipe()), json.dumps(content)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert plan.sampling.total == pytest.approx(measured["peak"], rel=0.1)


def test_each_stage_divides_what_the_article_says() -> None:
    stages = [rank_memory(STEP, 100, stage, 4, Settings(**OPTIONS)) for stage in range(4)]
    assert [memory.optimizer for memory in stages] == [1200, 300, 300, 300]
    assert [memory.gradients for memory in stages] == [400, 400, 100, 100]
    assert [memory.weights for memory in stages] == [200, 200, 200, 50]
    assert [memory.buffer for memory in stages] == [400, 40, 20, 20]
    assert stages[0].total == 200 + 400 + 1200 + 700 + 400


def test_gradients_that_are_there_before_a_pass_come_on_top_of_activations() -> None:
    before = rank_memory(STEP, 100, 0, 1, Settings(**OPTIONS))
    after = rank_memory(STEP, 100, 0, 1, Settings(**(OPTIONS | {"accumulates": True})))
    assert (before.activations, after.activations) == (700, 1000)


def test_frozen_parameters_are_weights_without_gradient_and_optimizer() -> None:
    plain, frozen = (
        [rank_memory(STEP, 100, stage, 4, Settings(**OPTIONS), count) for stage in range(4)] for count in (0, 60)
    )
    # In 16 bits, and once more in float32, of which each rank has all.
    assert [b.weights - a.weights for a, b in zip(plain, frozen, strict=True)] == [360, 360, 360, 270]
    assert [b.total - a.total for a, b in zip(plain, frozen, strict=True)] == [360, 360, 360, 270]
    single = Settings(**(OPTIONS | {"value_bytes": 4, "sum_bytes": 4}))
    assert [rank_memory(STEP, 100, stage, 4, single, 60).weights for stage in range(4)] == [640, 640, 640, 160]


def test_sums_in_float32_take_twice_as_much_where_zero_divides_the_optimizer() -> None:
    plain, exact = (
        [rank_memory(STEP, 100, stage, 4, Settings(**(OPTIONS | {"sum_bytes": size}))) for stage in range(4)]
        for size in (2, 4)
    )
    assert [memory.gradients for memory in plain] == [400, 400, 100, 100]
    assert [memory.gradients for memory in exact] == [400, 800, 200, 200]
    # At stage 1, what is sent at a time is no more than there is. At stage 3 it is put together in float32.
    many = Settings(**(OPTIONS | {"sum_bytes": 4, "zero": {}}))
    assert [rank_memory(STEP, 100, stage, 4, many).buffer for stage in (1, 2, 3)] == [400, 10**9, 2 * 10**9]


def test_what_is_offloaded_is_not_on_the_accelerator() -> None:
    zero = OPTIONS["zero"] | {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    here, there = (
        [rank_memory(STEP, 100, n, 4, Settings(**(OPTIONS | {"zero": z}))) for n in range(4)]
        for z in (OPTIONS["zero"], zero)
    )
    assert [memory.offloaded for memory in there] == [0, 300, 300, 350]
    assert [a.total - b.total for a, b in zip(here, there, strict=True)] == [0, 300, 300, 350]


def test_in_float32_only_division_makes_a_copy_and_an_average_is_one_more() -> None:
    single = OPTIONS | {"value_bytes": 4, "sum_bytes": 4}
    assert rank_memory(STEP, 100, 0, 1, Settings(**single)).optimizer == 800
    assert rank_memory(STEP, 100, 1, 1, Settings(**single)).optimizer == 1200
    assert rank_memory(STEP, 100, 0, 1, Settings(**(single | {"averages": True}))).optimizer == 1200
