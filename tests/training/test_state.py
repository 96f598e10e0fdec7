from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rearkit.data.token_shards import TokenData
from rearkit.errors import RearkitError
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.training import state
from rearkit.training.engine import Engine
from rearkit.training.logs import read_log
from rearkit.training.loop import train
from rearkit.training.trainer import Trainer
from rearkit.training.validation import validate


def tokens(size: int = 20) -> TokenData:
    generator = np.random.default_rng(0)
    return TokenData.from_arrays(generator.integers(12, size=(size, 16)), np.arange(size) % 10)


def weights(model: Model) -> dict[str, torch.Tensor]:
    state = {**model.backbone.state_dict(), **model.objective.state_dict()}
    return {name: value.float().clone() for name, value in state.items()}


def farthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def make(tiny: Callable[..., Recipe]) -> Callable[..., Model]:
    def build_with(**table: Any) -> Model:
        train = {"steps": 6, "checkpoint_every": 3, "keep_checkpoints": 9, "log_every": 1, **table}
        return build(tiny(train=train, backbone={"dropout": 0.0, "attention_dropout": 0.0}))

    return build_with


def resumed(folder: Path, target: Path, model: Model, step: int = 3) -> Model:
    """Train on from a checkpoint of another run."""
    place = target / "checkpoints" / f"step-{step:08d}"
    shutil.copytree(folder / "checkpoints" / place.name, place)
    train(model, tokens(), folder=target)
    return model


def test_the_count_of_steps_lies_where_the_weights_are() -> None:
    master = torch.nn.Parameter(torch.empty(3, device="meta"))
    adamw = torch.optim.AdamW([master], fused=False)
    engine = Engine.__new__(Engine)
    engine._engine = SimpleNamespace(optimizer=adamw, basic_optimizer=adamw)
    engine.create_state(averages=False)
    step = adamw.state[master]["step"]
    assert step.device == master.device, "the fused optimizer reads it by a kernel"
    assert step.dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stages", [(0, 1), (1, 2), (2, 3), (3, 0)], ids=str)
def test_another_zero_stage_goes_on_where_one_left_off(
    stages: tuple[int, int], precision: str, make: Callable[..., Model], tmp_path: Path
) -> None:
    whole = make(zero_stage=stages[0], precision=precision)
    train(whole, tokens(), folder=tmp_path / "whole")
    other = resumed(tmp_path / "whole", tmp_path / "other", make(zero_stage=stages[1], precision=precision))
    assert farthest(weights(other), weights(whole)) <= (1e-5 if precision == "fp32" else 0.01)
    losses = [[line["loss"] for line in read_log(tmp_path / name)][-3:] for name in ("whole", "other")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4 if precision == "fp32" else 0.02)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_layout_goes_on_bit_for_bit(
    stage: int, precision: str, make: Callable[..., Model], tmp_path: Path
) -> None:
    """In 16 bits, this needs the master weights, which are finer than what the module computes with."""
    table = {"zero_stage": stage, "precision": precision, "ema_decay": 0.5}
    whole = make(**table)
    train(whole, tokens(), folder=tmp_path / "whole")
    again = resumed(tmp_path / "whole", tmp_path / "again", make(**table))
    assert farthest(weights(again), weights(whole)) == 0


def averages_by_hand(monkeypatch: pytest.MonkeyPatch, model: Model, decay: float) -> dict[str, torch.Tensor]:
    """Train a model without averages while keeping its weights' average beside it."""
    average = weights(model)
    step = Trainer.step

    def watched(trainer: Trainer, samples: Any) -> Any:
        number = trainer.done
        values = step(trainer, samples)
        d = min(decay, (2 + number) / (11 + number))
        for name, value in weights(model).items():
            average[name] = d * average[name] + (1 - d) * value
        return values

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", watched)
        train(model, tokens())
    return average


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_with_averages_ends_with_them_and_trains_as_one_without(
    stage: int, make: Callable[..., Model], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = averages_by_hand(monkeypatch, make(zero_stage=0), 0.3)
    plain, kept = make(zero_stage=stage), make(zero_stage=stage, ema_decay=0.3, validate_every=1)
    train(plain, tokens(), tokens(5), tmp_path / "plain")
    result = train(kept, tokens(), tokens(5), tmp_path / "kept")
    assert farthest(weights(kept), expected) < 1e-5
    assert farthest(weights(kept), weights(plain)) > 1e-4
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in ("plain", "kept")]
    assert losses[0] == losses[1]  # although the averages were validated after every step
    found = validate(kept, tokens(5), torch.device("cpu"))["held_out/cross_entropy"]
    assert result.held_out_cross_entropy == pytest.approx(found, abs=1e-6)


def test_averages_can_be_switched_on_and_off_in_mid_run(make: Callable[..., Model], tmp_path: Path) -> None:
    train(make(), tokens(), folder=tmp_path / "plain")
    train(make(ema_decay=0.5), tokens(), folder=tmp_path / "kept")
    on = resumed(tmp_path / "plain", tmp_path / "on", make(ema_decay=0.5))
    off = resumed(tmp_path / "kept", tmp_path / "off", make())
    assert farthest(weights(off), weights(resumed(tmp_path / "plain", tmp_path / "again", make()))) == 0
    assert farthest(weights(on), weights(off)) > 1e-4


def test_the_checkpoint_of_another_model_is_refused(
    make: Callable[..., Model], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    train(make(), tokens(), folder=tmp_path)
    with pytest.raises(RearkitError, match="the checkpoint of another model"):
        train(build(tiny(backbone={"num_layers": 3}, train={"steps": 6})), tokens(), folder=tmp_path)
    with pytest.raises(RearkitError, match="of another size"):
        train(build(tiny(backbone={"hidden_size": 32}, train={"steps": 6})), tokens(), folder=tmp_path)


def test_a_checkpoint_is_safetensors_with_whole_tensors_of_float32(make: Callable[..., Model], tmp_path: Path) -> None:
    model = make(precision="bf16", ema_decay=0.9)
    train(model, tokens(), folder=tmp_path)
    (folder,) = (tmp_path / "checkpoints").glob("step-00000003")
    with state._tensors(folder) as files:
        tensors = {name: file.get_tensor(name) for name, file in files.items()}
    names = [name for name, _ in model.backbone.named_parameters()]
    for kind in ("weights", "exp_avg", "exp_avg_sq", "average"):
        assert {name for name in tensors if name.startswith(f"{kind}/backbone.")} == {
            f"{kind}/backbone.{n}" for n in names
        }
    assert {tensor.dtype for name, tensor in tensors.items() if not name.startswith("buffers/")} == {torch.float32}
    shape = model.backbone.state_dict()["blocks.0.mlp.fc1.weight"].shape
    assert tensors["exp_avg/backbone.blocks.0.mlp.fc1.weight"].shape == shape
