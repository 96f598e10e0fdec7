from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rearkit.data.token_shards import TokenData
from rearkit.errors import RearkitError
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.training import trainer as trainer_module
from rearkit.training import validation
from rearkit.training.loop import train
from rearkit.training.trainer import Trainer
from rearkit.training.validation import Totals, validate

CPU = torch.device("cpu")


def tokens(size: int = 20) -> TokenData:
    codes = np.random.default_rng(0).integers(12, size=(size, 16))
    return TokenData.from_arrays(codes, np.arange(size) % 10)


@pytest.fixture
def make(tiny: Callable[..., Recipe]) -> Callable[..., Model]:
    """A fresh tiny model, with changes to [train]."""
    return lambda **table: build(tiny(train=table))


def test_logits_of_the_places_of_a_prefix_are_not_compared_with_tokens(make: Callable[..., Model]) -> None:
    tokens_BN, classes_B = tokens().take(np.arange(2))
    backbone = make().backbone
    backbone.forward = lambda *arguments: (torch.zeros(2, 18, 12), {})  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="cut off the positions of a prefix"):
        Totals().add(backbone, tokens_BN, tokens_BN, classes_B)


@pytest.mark.parametrize(
    ("codes", "highest", "message"),
    [
        (np.zeros((3, 9)), 0, "the held-out token shards have 9 tokens an image, the tokenizer 16"),
        (np.full((3, 16), 12), 0, "image 0 has token 12, but the tokenizer has 12 codes"),
        # The class that stands for "no label" would be read without an error.
        (np.zeros((3, 16)), 10, "the held-out token shards hold class 10, but the recipe has 10 classes"),
        (np.zeros((3, 16)), 12, "the held-out token shards hold class 12, but the recipe has 10 classes"),
    ],
)
def test_held_out_tokens_that_do_not_fit_are_refused_before_training(
    codes: np.ndarray, highest: int, message: str, make: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", lambda *arguments: pytest.fail("a step was taken"))
    with pytest.raises(RearkitError, match=message):
        train(make(), tokens(), TokenData.from_arrays(codes, np.array([0, 1, highest])))


def test_a_last_validation_that_fails_loses_no_step(
    make: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = make(validate_every=3), make(validate_every=3)
    train(whole, tokens(), tokens(7))
    calls = []

    def full(*arguments: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return {"held_out/cross_entropy": -1.0, "held_out/accuracy": -1.0}

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(trainer_module, "validate", full)
        train(cut, tokens(), tokens(7), tmp_path)
    monkeypatch.setattr(Trainer, "step", lambda *arguments: pytest.fail("a step was taken again"))
    resumed = make(validate_every=3)
    result = train(resumed, tokens(), tokens(7), tmp_path)
    for name, value in resumed.backbone.state_dict().items():
        assert torch.equal(value, whole.backbone.state_dict()[name]), name
    # Of these weights, not of those that were validated a step before.
    assert result.held_out_cross_entropy == validate(whole, tokens(7), CPU)["held_out/cross_entropy"]


def test_no_more_are_validated_at_once_than_are_trained_and_figures_stay(make: Callable[..., Model]) -> None:
    model, small = make(), make(micro_batch=2)
    rows: list[int] = []
    for one in (model, small):
        one.backbone.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    expected = validate(model, tokens(7), CPU)
    assert validate(small, tokens(7), CPU) == pytest.approx(expected, rel=1e-6)
    assert rows == [7, 2, 2, 2, 1]


def test_a_part_of_a_split_in_which_two_classes_come_in_turn_has_both(
    make: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "VALIDATION_LIMIT", 11)
    data = TokenData.from_arrays(np.zeros((21, 16)), np.arange(21) % 2)
    model = make()
    seen: list[torch.Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    assert validate(model, data, CPU) == validate(model, data, CPU)
    first, again = seen
    assert len(first) == 11 and set(first.tolist()) == {0, 1} and torch.equal(first, again)


# Trains on two ranks at three ZeRO stages. Each rank notes the batches and the figures of a validation, those of a call
# that finds all done, which only the first rank has read from the log, and those of one that is not shared.
SCRIPT = """
import json, os, sys
from pathlib import Path

import numpy as np, torch
from rearkit.data.token_shards import TokenData
from rearkit.model import build
from rearkit.recipe.loading import load_recipe
from rearkit.system import distributed
from rearkit.training.loop import train
from rearkit.training.trainer import Trainer
from rearkit.training.validation import validate

folder, recipe, size = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
codes = np.random.default_rng(0).integers(12, size=(20, 16))
data = TokenData.from_arrays(codes, np.arange(20) % 10)
held_out = TokenData.from_arrays(codes[:size], np.arange(size) % 10)
found, report = [], Trainer.report


def noted(trainer, values):
    rows.clear()
    report(trainer, values)


Trainer.report = noted
for stage in (0, 2, 3):
    recipe["train"] |= {"zero_stage": stage}
    model, rows = build(load_recipe(recipe)), []
    model.backbone.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    shared = train(model, data, held_out, folder / str(stage)).last
    batches = list(rows)
    again = train(build(load_recipe(recipe)), data, held_out, folder / str(stage)).last
    several, distributed.several = distributed.several, lambda: False
    alone = validate(model, held_out, torch.device("cpu"))
    distributed.several = several
    found.append([batches, *({name: one[name] for name in alone} for one in (shared, again, alone))])
(folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
distributed.leave()
"""


@pytest.mark.parametrize(
    ("size", "batches"),
    [
        # Five images and four, of two at once: the second rank would be a forward pass short.
        (9, [2, 2, 1]),
        pytest.param(1, [1], marks=pytest.mark.slow),
    ],
)
def test_ranks_share_a_validation_and_its_figures_stay(
    size: int, batches: list[int], tmp_path: Path, tiny_recipe: Any
) -> None:
    recipe = tiny_recipe(train={"steps": 1, "global_batch": 4, "micro_batch": 2})
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path), json.dumps(recipe), str(size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert one[0] == other[0] == batches
        assert one[1] == other[1] == one[2] == other[2]
        assert one[1] == pytest.approx(one[3], rel=1e-6)
