from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from hypothesis import given
from hypothesis import strategies as st

from rearkit.data.token_shards import TokenData
from rearkit.data.token_writing import write_token_shard
from rearkit.errors import DivergedError
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.recipe.train_table import GuardsTable
from rearkit.training.batches import Batch
from rearkit.training.engine import scale_may_fall
from rearkit.training.guards import FEWEST, GuardedAdamW, StepGuard, poisoned
from rearkit.training.logs import read_log
from rearkit.training.loop import train
from rearkit.training.train_module import TrainModule
from rearkit.training.trainer import Trainer

MARKED = 3  # a class whose samples make the fault


@pytest.fixture
def shards(tmp_path: Path) -> TokenData:
    """Two shards; the marked class is in the second alone, once."""
    generator = np.random.default_rng(0)
    for index, classes in enumerate(([0, 1, 2, 0, 1, 2, 0, 1], [1, 2, 0, 1, MARKED, 2, 0, 1])):
        write_token_shard(tmp_path / f"train-{index}.tar", generator.integers(12, size=(8, 16)), np.array(classes), {})
    return TokenData.from_shards(sorted(tmp_path.glob("*.tar")))


@pytest.fixture
def make(tiny: Callable[..., Recipe]) -> Callable[..., Model]:
    def build_with(**table: Any) -> Model:
        # No label is dropped, so that the marked class is always seen; an epoch is four steps.
        return build(tiny(train={"global_batch": 4, "label_dropout": 0.0, "log_every": 1, **table}))

    return build_with


def inject(monkeypatch: pytest.MonkeyPatch, fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let the loss of a batch with the marked class go wrong."""
    forward = TrainModule.forward

    def faulty(self: TrainModule, batch: Batch) -> Any:
        loss, parts = forward(self, batch)
        return (fault(loss) if (batch.classes_B == MARKED).any() else loss), parts

    monkeypatch.setattr(TrainModule, "forward", faulty)


def state(engine: Any) -> list[torch.Tensor]:
    """Weights, master weights and moments of this rank."""
    moments = [value for each in engine.basic_optimizer.state.values() for value in each.values()]
    masters = [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    tensors = [*engine.module.state_dict().values(), *masters, *filter(torch.is_tensor, moments)]
    return [tensor.detach().clone() for tensor in tensors]


def unchanged(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each step, whether it left everything as it was."""
    steps: list[bool] = []
    step = Trainer.step

    def watched(trainer: Trainer, samples: Any) -> Any:
        before = state(trainer.engine._engine)
        values = step(trainer, samples)
        steps.append(unchanged(before, state(trainer.engine._engine)))
        return values

    monkeypatch.setattr(Trainer, "step", watched)
    return steps


FAULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda loss: loss * math.nan,
    "inf": lambda loss: loss + math.inf,  # its gradient is finite
}


@pytest.mark.parametrize("micro", [2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_step_with_a_bad_loss_is_skipped_counted_and_told(
    fault: str,
    stage: int,
    precision: str,
    micro: int,
    make: Callable[..., Model],
    shards: TokenData,
    untouched: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    if fault == "inf" and micro == 4:
        pytest.skip("alike")
    inject(monkeypatch, FAULTS[fault])
    model = make(steps=8, zero_stage=stage, precision=precision, micro_batch=micro)
    train(model, shards, folder=tmp_path / "run")
    assert untouched.count(True) == 2  # the marked sample is seen once an epoch
    log = read_log(tmp_path / "run")
    assert log[-1]["skipped_steps"] == 2
    assert [math.isfinite(line.get("loss", math.nan)) for line in log] == [not skipped for skipped in untouched]
    assert all(torch.isfinite(value).all() for value in model.backbone.state_dict().values())
    told = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    steps = [number for number, skipped in enumerate(untouched, start=1) if skipped]
    assert len(told) == 2
    for count, (step, line) in enumerate(zip(steps, told, strict=True), start=1):
        assert line.startswith(f"train: step {step}: the loss is {fault}; its samples come from")
        assert f"({count} of at most 20)" in line
        assert f"{tmp_path / 'train-1.tar'}" in line


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_bad_gradient_of_a_good_loss_is_skipped_too(
    stage: int,
    make: Callable[..., Model],
    shards: TokenData,
    untouched: list[bool],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Overflowing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * math.inf

    inject(monkeypatch, Overflowing.apply)
    train(make(steps=4, zero_stage=stage, clip=0.0), shards)
    assert untouched.count(True) == 1
    assert "the gradient is NaN or infinite" in capsys.readouterr().out


def test_a_limit_stops_training_and_says_where_to_look(
    make: Callable[..., Model], shards: TokenData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inject(monkeypatch, FAULTS["nan"])
    with pytest.raises(DivergedError) as caught:
        train(make(steps=40, guards={"max_skipped_steps": 2}), shards)
    assert caught.value.exit_code == 5
    assert "3 steps skipped, more than the 2 that [train.guards] max_skipped_steps allows" in str(caught.value)
    assert str(tmp_path / "train-1.tar") in str(caught.value)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_jump_of_the_gradient_norm_is_told_and_counted(
    stage: int,
    make: Callable[..., Model],
    shards: TokenData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    inject(monkeypatch, lambda loss: loss * 1000)
    train(make(steps=16, zero_stage=stage), shards, folder=tmp_path / "run")
    told = [line for line in capsys.readouterr().out.splitlines() if "times the median" in line]
    count = read_log(tmp_path / "run")[-1]["grad_norm_spikes"]
    assert count == len(told) > 0
    assert all("gradient norm" in line for line in told)


def norms_told(norms: list[float], factor: float, capsys: pytest.CaptureFixture[str]) -> int:
    guard = StepGuard(GuardsTable(spike_factor=factor), lambda: False, lambda indices: [])
    for step, norm in enumerate(norms):
        guard.after_step(step, False, norm, [], [])
    capsys.readouterr()
    return guard.spikes


def test_norms_are_held_against_the_median_of_those_before(capsys: pytest.CaptureFixture[str]) -> None:
    calm = [1.0] * FEWEST
    assert norms_told([*calm, 9.9], 10, capsys) == 0
    assert norms_told([*calm, 10.1], 10, capsys) == 1
    assert norms_told([*calm, 50.0, 50.0, 50.0], 10, capsys) == 3  # a few do not move the median
    assert norms_told([*calm, *[50.0] * 100], 10, capsys) == FEWEST  # where they stay, they are the rule
    assert norms_told([*calm[1:], 50.0], 10, capsys) == 0  # too early to tell
    assert norms_told([*calm, 50.0], 0, capsys) == 0


def test_fp16_lowers_its_loss_scale_without_a_word_unless_the_loss_is_bad_or_it_is_at_its_lowest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = DynamicLossScaler(
        2.0, 1000, min_scale=1.0, delayed_shift=1, consecutive_hysteresis=False, raise_error_at_min_scale=False
    )
    optimizer = SimpleNamespace(loss_scaler=scaler)
    guard = StepGuard(GuardsTable(), lambda: scale_may_fall(optimizer), lambda indices: ["a.tar"])
    guard.after_step(1, True, math.inf, [torch.tensor(2.0)], [np.array([0])])
    assert (guard.skipped, capsys.readouterr().out) == (0, "")
    guard.after_step(2, True, math.inf, [torch.tensor(math.inf)], [np.array([0])])
    assert guard.skipped == 1
    assert "the loss is inf; its samples come from a.tar" in capsys.readouterr().out
    monkeypatch.setattr("deepspeed.runtime.fp16.loss_scaler.dist.get_rank", lambda: 1)
    scaler.update_scale(True)  # now at its lowest, where an overflow is no longer for good reason
    guard.after_step(3, True, math.inf, [torch.tensor(2.0)], [np.array([0])])
    assert guard.skipped == 2
    assert "the gradient is NaN or infinite" in capsys.readouterr().out


def test_many_shards_are_not_all_named(capsys: pytest.CaptureFixture[str]) -> None:
    guard = StepGuard(GuardsTable(), lambda: False, lambda indices: [f"{index:02d}.tar" for index in indices])
    guard.after_step(1, True, None, [torch.tensor(1.0), torch.tensor(math.nan)], [np.arange(2), np.arange(2, 22)])
    out = capsys.readouterr().out
    assert "from 02.tar, 03.tar" in out
    assert "09.tar and 12 more;" in out


@given(st.floats(-(2.0**99), 2.0**99, width=32))
def test_a_good_loss_is_left_alone(value: float) -> None:
    parameter = torch.tensor(value, requires_grad=True)
    loss = poisoned(parameter * 1.0)
    loss.backward()
    assert (loss.item(), parameter.grad) == (pytest.approx(value), torch.tensor(1.0))


def test_the_guarded_optimizer_takes_the_steps_of_adamw_with_clipping() -> None:
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 6)) for _ in range(2)]
    plain = torch.optim.AdamW([{"params": [weights[0]], "weight_decay": 0.1}], lr=0.1, betas=(0.9, 0.96))
    guarded = GuardedAdamW([{"params": [weights[1]], "weight_decay": 0.1}], 0.5, lr=0.1, betas=(0.9, 0.96))
    for step in range(5):
        gradient = torch.linspace(0, 1 + step, 6)
        weights[0].grad, weights[1].grad = gradient.clone(), gradient.clone()
        norm = torch.nn.utils.clip_grad_norm_([weights[0]], 0.5)
        plain.step()
        guarded.step()
        assert guarded._global_grad_norm == pytest.approx(norm.item())
    assert torch.equal(*weights)
