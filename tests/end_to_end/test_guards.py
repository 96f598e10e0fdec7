"""Steps that go wrong: on one rank of two, and through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

# Trains on two ranks, where only the second meets the faulty sample, and notes what each step left as it was.
SCRIPT = """
import json, math, os, sys
from pathlib import Path

import pytest
import numpy as np, torch
from rearkit.data.token_shards import TokenData
from rearkit.model import build
from rearkit.recipe.loading import load_recipe
from rearkit.training import loop
from rearkit.training.train_module import TrainModule
from rearkit.training.trainer import Trainer

folder, recipe = Path(sys.argv[1]), json.loads(sys.argv[2])
forward, step, untouched = TrainModule.forward, Trainer.step, []


def faulty(self, batch):
    loss, parts = forward(self, batch)
    return (loss * math.nan if (batch.classes_B == 3).any() else loss), parts


def watched(trainer, samples):
    weights = lambda: torch.cat([p.detach().flatten().clone() for p in trainer.engine.module.parameters()])
    before = weights()
    values = step(trainer, samples)
    untouched.append([torch.equal(before, weights()), weights().double().sum().item()])
    return values


TrainModule.forward, Trainer.step = faulty, watched
generator = np.random.default_rng(0)
classes = np.zeros(16, int)
classes[5] = 3
data = TokenData.from_arrays(generator.integers(12, size=(16, 16)), classes)
data.names = ["the shard"]
for stage, precision in ((0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16")):
    recipe["train"] |= {"zero_stage": stage, "precision": precision}
    loop.train(build(load_recipe(recipe)), data)
(folder / f"{os.environ['RANK']}.json").write_text(json.dumps(untouched))
"""


def test_a_bad_loss_on_one_rank_skips_the_step_on_both(tmp_path: Path, tiny_recipe: Any) -> None:
    recipe = tiny_recipe(train={"steps": 4, "global_batch": 4, "label_dropout": 0.0})
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path), json.dumps(recipe)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second  # the same weights after each step
    assert len(first) == 16
    for start in range(0, 16, 4):  # an epoch in each layout
        assert sum(left for left, _ in first[start : start + 4]) == 1
    told = [line for line in done.stdout.splitlines() if "is skipped" in line]
    assert len(told) == 4 and len({line.split(":")[1] for line in told}) == 1
    assert all("the loss is nan on rank " in line and "come from the shard;" in line for line in told)


@pytest.mark.slow
def test_training_that_blows_up_ends_with_a_code_of_its_own(tmp_path: Path) -> None:
    settings = (
        "data.source.train_per_class=4", "data.source.held_out_per_class=2", "tokenizer.fit.steps=1",
        "tokenizer.fit.warmup_steps=0", "tokenizer.fit.min_psnr=0", "tokens.min_psnr=0", "tokens.min_codebook_use=0",
        "train.lr=1e15", "train.end_lr=1e15", "train.warmup_steps=0", "train.guards.max_skipped_steps=3",
    )  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "rearkit",
        "run",
        str(ROOT / "recipes" / "smoke.toml"),
        f"--out={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [*command, *(f"--set={setting}" for setting in settings)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 5, done.stdout + done.stderr
    assert "4 steps skipped, more than the 3 that [train.guards] max_skipped_steps allows" in done.stderr
    assert "train-000000.tar" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.count("is skipped") == 3
