from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rearkit.data.token_shards import TokenData
from rearkit.model import build
from rearkit.recipe.tables import Recipe
from rearkit.system import distributed
from rearkit.training.batches import Batch
from rearkit.training.deepspeed_config import import_deepspeed
from rearkit.training.engine import Engine
from rearkit.training.loop import train
from rearkit.training.train_module import TrainModule


def batch_of(recipe: Recipe, size: int = 3) -> Batch:
    tokens = torch.randint(12, (size, 16))
    return Batch(tokens, tokens.flip(1), torch.rand(size, 16) < 0.5, torch.randint(11, (size,)), 0.5)


def test_the_module_computes_the_objective_of_the_backbones_outputs(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny(backbone={"dropout": 0.0, "attention_dropout": 0.0}))
    module, batch = TrainModule(model), batch_of(model.recipe)
    loss, parts = module(batch)
    logits, hidden = module.backbone(batch.context_BN, batch.classes_B, model.objective.layers)
    expected = model.objective(logits, hidden, batch.tokens_BN, batch.replaced_BN, 2)
    assert torch.equal(loss, expected.total)
    assert parts.keys() == expected.parts.keys()


def test_the_tokenizer_is_no_part_of_what_is_trained(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny())
    trained = {id(parameter) for parameter in TrainModule(model).parameters()}
    assert not trained & {id(parameter) for parameter in model.tokenizer.parameters()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
def test_what_the_optimizer_gets_is_a_sum_in_float32(precision: str, tiny: Callable[..., Recipe]) -> None:
    table = {"steps": 1, "clip": 0.0, "micro_batch": 1, "precision": precision, "zero_stage": 1}
    seen: list[torch.Tensor] = []

    def look(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        groups = optimizer.param_groups
        seen.extend(p.grad.flatten().clone() for group in groups for p in group["params"] if p.grad is not None)

    hook = register_optimizer_step_pre_hook(look)
    try:
        generator = np.random.default_rng(0)
        data = TokenData.from_arrays(generator.integers(12, size=(20, 16)), np.arange(20) % 10)
        train(build(tiny(train=table, backbone={"dropout": 0.0, "attention_dropout": 0.0})), data)
    finally:
        hook.remove()
    sums = torch.cat(seen)
    sums = sums[sums != 0]
    # A sum of eight that was rounded is a bf16 number; one that was not seldom happens to be.
    assert len(sums) > 1000 and (sums.bfloat16().float() == sums).float().mean() < 0.2
    # What DeepSpeed notes of autocast, for the whole process, is not left to the next training.
    assert not importlib.import_module("deepspeed.runtime.torch_autocast").is_autocast_initialized()


def test_deepspeed_takes_the_one_device_that_srun_shows_a_rank(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    deepspeed = import_deepspeed(torch.device("cpu"))
    taken: list[str] = []

    def initialize(**given: Any) -> None:
        taken.append(os.environ["LOCAL_RANK"])
        raise KeyboardInterrupt

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "start", lambda device: None)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **given: None)
    monkeypatch.setattr(deepspeed, "initialize", initialize)
    recipe = tiny()
    # What `local_device` answers where a rank sees one device.
    with pytest.raises(KeyboardInterrupt):
        Engine(TrainModule(build(recipe)), recipe.train, torch.device("cuda", 0))
    assert taken == ["0"]


def test_deepspeeds_own_groups_wait_as_long_as_ours(tiny: Callable[..., Recipe]) -> None:
    """torch gives a group that names no time-out 10 minutes with NCCL and 30 with gloo, not the default group's."""
    recipe = tiny()
    new_group = torch.distributed.new_group
    engine = Engine(TrainModule(build(recipe)), recipe.train, torch.device("cpu"))
    group = engine._engine.data_parallel_group
    engine.close()
    timeout = group._get_backend(torch.device("cpu")).options._timeout
    assert timeout == distributed.PATIENCE and torch.distributed.new_group is new_group
