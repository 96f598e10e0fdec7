"""Training with rearkit-rivals at each ZeRO stage: a second pass for noise, and a teacher that follows the weights."""

from __future__ import annotations

import functools
import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor

from rearkit.contracts import NoiseContext, RegularizerContext
from rearkit.data.token_shards import TokenData
from rearkit.model import Model, build
from rearkit.objective import Objective
from rearkit.recipe.tables import Recipe
from rearkit.training.logs import read_log
from rearkit.training.loop import train
from rearkit.training.trainer import Trainer

PROJECT = Path(__file__).parents[2] / "plugins" / "rearkit-rivals"
# As `tests/training/test_state.py` has them, where two ZeRO stages are compared.
NEAR = {"fp32": 1e-4, "bf16": 0.02}
EVERY = [
    pytest.param(stage, precision, marks=[] if (stage, precision) in ((3, "fp32"), (1, "bf16")) else pytest.mark.slow)
    for precision in ("fp32", "bf16")
    for stage in range(4)
]


@pytest.fixture(scope="module")
def rivals() -> Iterator[Callable[[str], Any]]:
    """Import a module of the package from the checkout, installed or not."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(PROJECT))
        yield lambda name: importlib.import_module(f"rearkit_rivals.{name}")


@pytest.fixture(scope="module")
def make(tiny: Callable[..., Recipe], rivals: Callable[[str], Any]) -> Callable[..., Model]:
    """A tiny model with scheduled sampling and self-guided training, or with another noise or decay of the package."""

    def build_with(decay: float = 0.5, noise: str = "sampling", **table: Any) -> Model:
        table = {"steps": 2, "log_every": 1, "lr": 1e-2, **table}
        model = build(tiny(train=table, backbone={"dropout": 0.0, "attention_dropout": 0.0}))
        codebook_VZ = model.tokenizer.codebook()
        backbone = model.backbone
        context = RegularizerContext(backbone.hidden_size, backbone.num_layers, codebook_VZ, model.space, backbone)
        settings = rivals("self_guided").SelfGuidedSettings(projection_dim=8, decay=decay)
        guided = rivals("self_guided").SelfGuided(settings, context)
        if noise == "sampling":
            schedule = rivals("scheduled_sampling").ScheduledSampling(end_rate=0.9)
        else:
            near = rivals("replacement_noise").NearestCodeSettings()
            schedule = rivals("replacement_noise").NearestCode(near, NoiseContext(model.space, codebook_VZ))
        return attrs.evolve(model, noise=schedule, objective=Objective({"self-guided": guided}))

    return build_with


def tokens() -> TokenData:
    generator = np.random.default_rng(0)
    return TokenData.from_arrays(generator.integers(12, size=(20, 16)), np.arange(20) % 10)


def teacher(model: Model) -> torch.nn.Module:
    found: Any = model.objective.regularizers["self-guided"]
    return found.teacher


def weights(model: Model) -> dict[str, Tensor]:
    state = {**model.backbone.state_dict(), **model.objective.state_dict()}
    return {name: value.float().clone() for name, value in state.items()}


def farthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def wholes(trainer: Trainer, module: torch.nn.Module) -> dict[str, Tensor]:
    """The master weights of a module, or the float32 copies of frozen ones."""
    return {name: trainer.engine.whole(p).float().clone() for name, p in module.named_parameters()}


class Followed:
    """Trains a model, and averages its weights beside it by the formula.

    Attributes:
        start: the teacher before training.
        end: the teacher after it, as exactly as the engine has it.
        average: what it should be.
    """

    def __init__(self, model: Model, decay: float, folder: Path) -> None:
        self.start: dict[str, Tensor] = {}
        step = Trainer.step

        def watched(trainer: Trainer, samples: Any) -> Any:
            if not self.start:
                self.start = wholes(trainer, teacher(model))
                self.average = dict(self.start)
            values = step(trainer, samples)
            for name, value in wholes(trainer, model.backbone).items():
                self.average[name] = decay * self.average[name] + (1 - decay) * value
            self.end = wholes(trainer, teacher(model))
            return values

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Trainer, "step", watched)
            train(model, tokens(), folder=folder)
        self.losses = [line["loss"] for line in read_log(folder)]


@pytest.fixture(scope="module")
def followed(make: Callable[..., Model], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Followed]:
    """Two steps at a ZeRO stage, once."""

    @functools.cache
    def trained(stage: int, precision: str) -> Followed:
        return Followed(make(zero_stage=stage, precision=precision), 0.5, tmp_path_factory.mktemp("run"))

    return trained


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_losses_and_teacher_are_those_of_any_stage(
    stage: int, precision: str, followed: Callable[[int, str], Followed]
) -> None:
    one, other = followed(0, precision), followed(stage, precision)
    assert len(other.losses) == 2 and np.isfinite(other.losses).all()
    assert other.losses == pytest.approx(one.losses, abs=NEAR[precision])
    assert farthest(other.start, other.end) > 1e-3
    assert farthest(other.average, other.end) < 1e-6
    assert farthest(one.end, other.end) < (1e-5 if precision == "fp32" else 0.01)


@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_teacher_in_16_bits_moves_by_steps_below_their_rounding(
    stage: int, make: Callable[..., Model], tmp_path: Path
) -> None:
    model = make(decay=0.999, steps=8, zero_stage=stage, precision="bf16", lr=1e-3)
    run = Followed(model, 0.999, tmp_path)
    # What is handed back is the exact average; training computes with what 16 bits leave of it.
    assert next(teacher(model).parameters()).dtype == torch.float32
    shown = {name: parameter.bfloat16().float() for name, parameter in teacher(model).named_parameters()}
    moved, expected, seen = (
        torch.cat([(module[name] - run.start[name]).flatten() for name in run.end])
        for module in (run.end, run.average, shown)
    )
    assert (moved != 0).float().mean() > 0.5  # others have no gradient yet, behind gates at zero
    assert (moved - expected).abs().mean() < 1e-3 * expected.abs().mean()
    assert (seen - expected).abs().mean() > 0.3 * expected.abs().mean(), "16 bits alone would do"


def resumed(folder: Path, target: Path, model: Model) -> Model:
    place = target / "checkpoints" / "step-00000002"
    shutil.copytree(folder / "checkpoints" / place.name, place)
    train(model, tokens(), folder=target)
    return model


@pytest.mark.parametrize(("stage", "precision"), EVERY)
def test_a_resumed_run_ends_with_the_same_bits(
    stage: int, precision: str, make: Callable[..., Model], tmp_path: Path
) -> None:
    table = {"zero_stage": stage, "precision": precision, "steps": 4, "checkpoint_every": 2, "keep_checkpoints": 9}
    whole = make(decay=0.99, **table)
    train(whole, tokens(), folder=tmp_path / "whole")
    again = resumed(tmp_path / "whole", tmp_path / "again", make(decay=0.99, **table))
    assert farthest(weights(again), weights(whole)) == 0
    last = [read_log(tmp_path / name)[-1] for name in ("whole", "again")]
    assert last[0]["loss"] == last[1]["loss"]


def test_a_teacher_goes_on_at_another_stage(make: Callable[..., Model], tmp_path: Path) -> None:
    table = {"precision": "bf16", "steps": 4, "checkpoint_every": 2, "keep_checkpoints": 9}
    whole = make(zero_stage=1, **table)
    train(whole, tokens(), folder=tmp_path / "whole")
    other = resumed(tmp_path / "whole", tmp_path / "other", make(zero_stage=3, **table))
    assert farthest(weights(other), weights(whole)) < 0.01


def test_accumulated_micro_batches_are_drawn_for_like_the_whole(make: Callable[..., Model], tmp_path: Path) -> None:
    """The second pass's predictions and draws are each row's own, and so are near codes."""
    for noise in ("sampling", "near"):
        models = [make(noise=noise, micro_batch=size) for size in (8, 2)]
        contexts: list[Tensor] = []
        for model in models:
            seen: list[Tensor] = []
            forward = model.backbone.forward

            def watched(tokens_BN: Tensor, *rest: Any, seen: Any = seen, forward: Any = forward) -> Any:
                if rest[1:]:
                    seen.append(tokens_BN)
                return forward(tokens_BN, *rest)

            model.backbone.forward = watched  # type: ignore[method-assign]
            with Trainer(model, tokens(), None, None) as trainer:
                trainer.done = 1
                trainer.feed.next(0)
                trainer.step(trainer.feed.next(1))
            contexts.append(torch.cat(seen))
        assert torch.equal(*contexts)
