"""A backbone whose head has its embedding's weight is trained, drawn, resumed, exported and loaded as any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_plugin import Plain, Tied, registered

from rearkit.data.token_shards import TokenData
from rearkit.model import Model, build
from rearkit.recipe.loading import load_recipe
from rearkit.registry.component import Component
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.train import export, load_model
from rearkit.training.loop import train
from rearkit.training.pictures import read_pictures


class WithState(Tied):
    """It has an extra state, which is a tensor."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.ones(2)

    def set_extra_state(self, state: torch.Tensor) -> None:
        pass


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with registered(Component("backbone", "tied", Plain, Tied), Component("backbone", "with-state", Plain, WithState)):
        yield


def tokens() -> TokenData:
    return TokenData.from_arrays(np.random.default_rng(0).integers(12, size=(20, 16)), np.arange(20) % 10)


@pytest.fixture
def make(tiny_recipe: Callable[..., dict[str, Any]]) -> Callable[..., Model]:
    def build_with(name: str = "tied", **table: Any) -> Model:
        train = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 9, **table}
        return build(load_recipe({**tiny_recipe(train=train), "backbone": {"name": name}}))

    return build_with


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.backbone.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(("stage", "average"), [(0, 0.5), (3, 0.0)])
def test_it_is_trained_resumed_exported_and_loaded(
    stage: int, average: float, make: Callable[..., Model], tmp_path: Path
) -> None:
    table = {"zero_stage": stage, "ema_decay": average}
    model, begun = make(**table), weights(make(**table))
    run = RunFolder(tmp_path / "run")
    train(model, tokens(), folder=tmp_path / "whole")
    trained: Any = model.backbone
    assert trained.head.weight is trained.tokens.weight
    assert not same(weights(model), begun)
    assert list(read_pictures(tmp_path / "whole")) == [2, 4]
    # From the checkpoint in the middle.
    place = tmp_path / "again" / "checkpoints" / "step-00000002"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / place.name, place)
    again = make(**table)
    train(again, tokens(), folder=tmp_path / "again")
    assert same(weights(again), weights(model))
    export(model, 4, run)
    loaded = load_model(run.model, model.tokenizer, trust=True)
    assert same(weights(loaded), weights(model))


def test_the_extra_state_of_a_module_is_no_parameter(make: Callable[..., Model], tmp_path: Path) -> None:
    train(make("with-state"), tokens(), folder=tmp_path)
    assert list(read_pictures(tmp_path)) == [2, 4]
