from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rearkit.data.token_shards import TokenData
from rearkit.errors import Interrupted, Preempted, RearkitError, RecipeError
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.sampling.sampler import sample
from rearkit.training.logs import read_log
from rearkit.training.loop import train
from rearkit.training.schedule import learning_rate
from rearkit.training.trainer import Trainer
from rearkit.training.validation import validate

CPU = torch.device("cpu")


def tokens(size: int = 20, width: int = 16, codes: int = 12) -> TokenData:
    generator = np.random.default_rng(0)
    return TokenData.from_arrays(generator.integers(codes, size=(size, width)), np.arange(size) % 10)


def weights(model: Model) -> dict[str, torch.Tensor]:
    state = {**model.backbone.state_dict(), **model.objective.state_dict()}
    return {name: value.clone() for name, value in state.items()}


def farthest(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def make(tiny: Callable[..., Recipe]) -> Callable[..., Model]:
    """A fresh tiny model, with changes to [train]; without dropout, whose draws differ from layout to layout."""

    def build_with(**table: Any) -> Model:
        return build(tiny(train=table, backbone={"dropout": 0.0, "attention_dropout": 0.0}))

    return build_with


@pytest.fixture(scope="module")
def plain(make: Callable[..., Model]) -> Model:
    """The model as its recipe trains it, in one piece."""
    model = make()
    train(model, tokens())
    return model


def test_training_lowers_the_loss_and_fits_what_it_sees(make: Callable[..., Model]) -> None:
    model = make(steps=60, global_batch=10, log_every=1, lr=2e-2)
    data = tokens(5)
    before = validate(model, data, CPU)
    result = train(model, data, data)
    assert before["held_out/cross_entropy"] == pytest.approx(np.log(12), abs=0.05)  # a fresh model knows nothing
    assert result.held_out_cross_entropy is not None
    assert result.held_out_cross_entropy < 0.7 * before["held_out/cross_entropy"]
    assert result.last["regularizer/codebook-embedding/encode"] < -0.5


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulation_changes_nothing(micro: int, make: Callable[..., Model], plain: Model) -> None:
    model = make(micro_batch=micro)
    train(model, tokens())
    assert farthest(weights(model), weights(plain)) < 1e-5
    assert farthest(weights(make()), weights(plain)) > 1e-3


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_zero_stages_train_alike_and_leave_an_ordinary_model(
    stage: int, make: Callable[..., Model], plain: Model
) -> None:
    model = make(zero_stage=stage)
    result = train(model, tokens(), tokens())
    assert farthest(weights(model), weights(plain)) < 1e-5
    assert result.held_out_cross_entropy == pytest.approx(
        validate(plain, tokens(), CPU)["held_out/cross_entropy"], abs=1e-5
    )
    assert np.array_equal(sample(model, [0, 1, 2]).tokens, sample(plain, [0, 1, 2]).tokens)
    model.backbone.forward(torch.zeros(1, 16, dtype=torch.int64), torch.tensor([0]))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())


@pytest.mark.parametrize(
    "table",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "zero_stage": 3},
        {"offload_optimizer": "cpu"},
        {"offload_optimizer": "cpu", "offload_parameters": "cpu", "zero_stage": 3},
        pytest.param({"compile": True, "activation_checkpointing": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_saves_memory_or_time_changes_nothing(
    table: dict[str, Any], make: Callable[..., Model], plain: Model, tmp_path: Path
) -> None:
    model = make(**table, checkpoint_every=2)
    result = train(model, tokens(), tokens(), tmp_path)
    assert farthest(weights(model), weights(plain)) < 1e-5
    assert result.held_out_cross_entropy == pytest.approx(
        validate(plain, tokens(), CPU)["held_out/cross_entropy"], abs=1e-5
    )


def test_the_seed_decides_a_run(make: Callable[..., Model], plain: Model, tiny: Callable[..., Recipe]) -> None:
    torch.manual_seed(99)
    again = make()
    torch.rand(7)
    train(again, tokens())
    assert farthest(weights(again), weights(plain)) == 0
    other = build(tiny(seed=1, backbone={"dropout": 0.0, "attention_dropout": 0.0}))
    train(other, tokens())
    assert farthest(weights(other), weights(plain)) > 1e-3


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_resumed_at_a_checkpoint_ends_as_the_uninterrupted_one(
    stage: int, tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(train={"steps": 6, "zero_stage": stage, "checkpoint_every": 2, "log_every": 1, "warmup_steps": 2})
    whole = build(recipe)  # with dropout: its draws are a function of the step too
    train(whole, tokens(), folder=tmp_path / "whole")
    cut = build(recipe)
    step = Trainer.step

    def dying(trainer: Trainer, samples: Any) -> Any:
        if trainer.done == 5:
            raise RuntimeError("killed")
        return step(trainer, samples)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(Trainer, "step", dying)
        train(cut, tokens(), folder=tmp_path / "cut")
    resumed = build(recipe)
    train(resumed, tokens(), folder=tmp_path / "cut")
    assert farthest(weights(resumed), weights(whole)) == 0
    logs = [read_log(tmp_path / name) for name in ("whole", "cut")]
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in logs[1]] == [line["loss"] for line in logs[0]]


def test_a_finished_run_called_again_changes_nothing(make: Callable[..., Model], tmp_path: Path) -> None:
    first, second = make(), make()
    data = tokens()
    results = [train(model, data, data, tmp_path) for model in (first, second)]
    assert farthest(weights(first), weights(second)) == 0
    assert results[0].held_out_cross_entropy == results[1].held_out_cross_entropy


def test_the_learning_rate_and_the_noise_of_each_step_are_the_schedules(
    make: Callable[..., Model], tmp_path: Path
) -> None:
    model = make(steps=8, warmup_steps=3, log_every=1)
    train(model, tokens(), folder=tmp_path)
    lines = read_log(tmp_path)
    assert [line["lr"] for line in lines] == [learning_rate(model.recipe.train, step) for step in range(8)]
    assert lines[0]["noise_level"] > 0.2
    assert [line["noise_level"] for line in lines[6:]] == [0, 0]  # from three quarters of training on
    assert all({"loss", "cross_entropy", "accuracy", "grad_norm"} <= line.keys() for line in lines)


def test_the_logged_loss_is_the_sum_of_its_parts(make: Callable[..., Model], tmp_path: Path) -> None:
    train(make(micro_batch=2, log_every=1), tokens(), folder=tmp_path)
    for line in read_log(tmp_path):
        parts = [line[f"regularizer/codebook-embedding/{term}"] for term in ("encode", "decode")]
        assert line["loss"] == pytest.approx(line["cross_entropy"] + sum(parts), abs=1e-5)


def test_gradients_are_clipped_at_the_norm_asked_for(make: Callable[..., Model], plain: Model) -> None:
    loose, off = make(clip=1e9), make(clip=0.0)
    train(loose, tokens())
    train(off, tokens())
    assert farthest(weights(loose), weights(off)) < 1e-6
    assert farthest(weights(loose), weights(plain)) > 1e-5


def test_weight_decay_reaches_the_decayed_alone(make: Callable[..., Model]) -> None:
    decayed, free = make(weight_decay=5.0, steps=1), make(weight_decay=0.0, steps=1)
    for model in (decayed, free):
        train(model, tokens())
    moved = {
        name for name, value in weights(decayed).items() if not torch.allclose(value, weights(free)[name], atol=1e-7)
    }
    assert "blocks.0.attn.qkv.weight" in moved
    assert not [
        n
        for n in moved
        if n.endswith("bias") or "norm" in n or "embed" in n.removeprefix("regularizers.codebook-embedding")
    ]


def test_logging_validating_and_saving_change_no_weights(
    make: Callable[..., Model], plain: Model, tmp_path: Path
) -> None:
    busy = make(log_every=1, validate_every=1, checkpoint_every=1)
    train(busy, tokens(), tokens(7), tmp_path)
    assert farthest(weights(busy), weights(plain)) == 0
    assert all("held_out/cross_entropy" in line for line in read_log(tmp_path))


def test_validation_is_the_cross_entropy_of_clean_labelled_tokens(plain: Model) -> None:
    data = tokens(70)  # more than one batch
    found = validate(plain, data, CPU)
    all_tokens, classes = data.take(range(70))
    with torch.no_grad():
        logits = plain.backbone(all_tokens, classes)[0][:, :16]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), all_tokens.flatten())
    assert found["held_out/cross_entropy"] == pytest.approx(expected.item(), abs=1e-5)
    assert found["held_out/accuracy"] == pytest.approx((logits.argmax(-1) == all_tokens).double().mean().item())


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)])
@pytest.mark.parametrize("folder", [True, False])
def test_a_signal_ends_the_step_saves_and_stops(
    number: int,
    kind: type[Interrupted],
    folder: bool,
    make: Callable[..., Model],
    tmp_path: Path,
    plain: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Trainer.step

    def signalled(trainer: Trainer, samples: Any) -> Any:
        if trainer.done == 1:
            os.kill(os.getpid(), number)
        return step(trainer, samples)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched, pytest.raises(kind, match="stopped at step 2 of 4") as caught:
        patched.setattr(Trainer, "step", signalled)
        train(make(), tokens(), folder=tmp_path if folder else None)
    assert type(caught.value) is kind
    assert signal.getsignal(number) is before
    if folder:
        resumed = make()
        train(resumed, tokens(), folder=tmp_path)
        assert farthest(weights(resumed), weights(plain)) == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tokens(width=9), "9 tokens an image, the tokenizer 16"),
        (tokens(codes=99), "come from another tokenizer or dataset"),
        (TokenData.from_arrays(np.zeros((3, 16)), np.array([0, 1, 10])), "class 10, but the recipe has 10 classes"),
    ],
)
def test_tokens_that_do_not_fit_the_model_are_refused(
    data: TokenData, message: str, make: Callable[..., Model]
) -> None:
    with pytest.raises(RearkitError, match=message):
        train(make(), data)


def test_a_checkpoint_beyond_the_last_step_is_refused(make: Callable[..., Model], tmp_path: Path) -> None:
    train(make(), tokens(), folder=tmp_path)
    with pytest.raises(RearkitError, match=r"checkpoint of step 4, beyond \[train\] steps = 2; choose another folder"):
        train(make(steps=2), tokens(), folder=tmp_path)


def test_a_precision_that_the_device_lacks_is_a_recipe_error(make: Callable[..., Model]) -> None:
    with pytest.raises(RecipeError, match=r'\[train\] precision = "fp16": DeepSpeed refuses it: .*not supported'):
        train(make(precision="fp16"), tokens())


def test_bf16_trains_much_like_fp32(make: Callable[..., Model], plain: Model) -> None:
    model = make(precision="bf16")
    train(model, tokens())
    rough = weights(model)
    # The master weights, not what bfloat16 leaves of them; and tables as they were before DeepSpeed rounded them.
    assert {value.dtype for value in rough.values()} == {torch.float32}
    assert any((value.bfloat16().float() != value).any() for value in rough.values())
    table = model.objective.regularizers["codebook-embedding"].codebook_VZ
    torch.testing.assert_close(table.norm(dim=-1), torch.ones(len(table)))
    assert farthest({name: value.float() for name, value in rough.items()}, weights(plain)) < 0.02


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_under_autocast_weights_stay_exact_and_losses_are_those_of_bf16(
    stage: int, make: Callable[..., Model], plain: Model
) -> None:
    model = make(precision="bf16-autocast", zero_stage=stage)
    result = train(model, tokens())
    found = weights(model)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert 0 < farthest(found, weights(plain)) < 0.02
    assert result.last["loss"] == pytest.approx(train(make(), tokens()).last["loss"], abs=0.02)


def test_a_run_of_no_steps_validates_what_there_is(make: Callable[..., Model]) -> None:
    model = make(steps=0)
    before = weights(model)
    result = train(model, tokens(), tokens())
    assert farthest(weights(model), before) == 0
    assert result.held_out_cross_entropy == pytest.approx(np.log(12), abs=0.05)


def test_a_result_is_json_and_says_itself_in_a_line(make: Callable[..., Model]) -> None:
    import attrs

    result = train(make(), tokens(), tokens())
    assert json.loads(json.dumps(attrs.asdict(result)))["steps"] == 4
    assert result.summary().startswith("4 steps, loss ")
    assert result.head_parameters > 0
