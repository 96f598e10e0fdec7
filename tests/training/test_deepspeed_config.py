from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rearkit.errors import RecipeError
from rearkit.recipe.train_table import GuardsTable, TrainTable
from rearkit.training.deepspeed_check import OWNED, check_deepspeed_table
from rearkit.training.deepspeed_config import batch_layout, deepspeed_config, import_deepspeed

CPU = torch.device("cpu")


@given(st.integers(1, 200), st.integers(1, 16), st.none() | st.integers(1, 32))
def test_a_layout_makes_the_global_batch_or_says_what_would(global_batch: int, world: int, micro: int | None) -> None:
    if micro is not None and global_batch % micro:
        return  # refused by the recipe
    train = TrainTable(steps=1, global_batch=global_batch, micro_batch=micro)
    try:
        size, accumulation = batch_layout(train, world)
    except RecipeError as error:
        assert global_batch % world or (micro is not None and global_batch // world % micro)
        (problem,) = error.problems
        assert problem.startswith(("[train] global_batch: ", "[train] micro_batch: "))
    else:
        assert size * accumulation * world == global_batch
        assert micro is None or size == micro
        assert micro is not None or accumulation == 1


@given(st.integers(1, 200), st.integers(1, 16))
def test_what_a_refused_global_batch_is_told_to_use_is_accepted(global_batch: int, world: int) -> None:
    if global_batch % world == 0:
        return
    with pytest.raises(RecipeError) as caught:
        batch_layout(TrainTable(steps=1, global_batch=global_batch), world)
    advice = caught.value.problems[0].partition("; use ")[2]
    ranks, batch = (int(word) for word in advice.replace(" = ", " ").replace(",", "").split() if word.isdigit())
    batch_layout(TrainTable(steps=1, global_batch=global_batch), ranks)
    batch_layout(TrainTable(steps=1, global_batch=batch), world)
    assert ranks < world


def test_what_a_refused_micro_batch_is_told_to_use_is_accepted() -> None:
    with pytest.raises(RecipeError, match=r"does not divide the 6 samples of each of 2 ranks; .*: 1, 2, 3, 6$"):
        batch_layout(TrainTable(steps=1, global_batch=12, micro_batch=4), 2)
    for micro in (1, 2, 3, 6):
        assert batch_layout(TrainTable(steps=1, global_batch=12, micro_batch=micro), 2) == (micro, 6 // micro)


def test_the_table_becomes_deepspeeds_configuration() -> None:
    train = TrainTable(steps=1, global_batch=24, micro_batch=3, clip=0.5, zero_stage=2, precision="bf16", log_every=7)
    config = deepspeed_config(train, 4)
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 2
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (True, False)


@pytest.mark.parametrize(("precision", "bf16", "fp16"), [("fp32", False, False), ("fp16", False, True)])
def test_precision_switches_one_format_on_at_most(precision: str, bf16: bool, fp16: bool) -> None:
    config = deepspeed_config(TrainTable(steps=1, global_batch=1, precision=precision), 1)
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (bf16, fp16)


def test_further_keys_are_merged_into_ours_and_leave_their_neighbours() -> None:
    further = {"zero_optimization": {"overlap_comm": False}, "communication_data_type": "fp32"}
    train = TrainTable(steps=1, global_batch=1, zero_stage=2, deepspeed=further)
    config = deepspeed_config(train, 1)
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": False}
    assert config["communication_data_type"] == "fp32"
    assert train.deepspeed == further  # not changed on the way


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"zero_stage": 1, "offload_optimizer": "cpu"}, {"stage": 1, "offload_optimizer": {"device": "cpu"}}),
        (
            {"zero_stage": 3, "offload_optimizer": "nvme", "offload_parameters": "cpu", "offload_path": "/fast"},
            {
                "stage": 3,
                "offload_optimizer": {"device": "nvme", "nvme_path": "/fast"},
                "offload_param": {"device": "cpu"},
            },
        ),
    ],
)
def test_offloading_becomes_deepspeeds(table: dict[str, Any], expected: dict[str, Any]) -> None:
    assert deepspeed_config(TrainTable(steps=1, global_batch=1, **table), 1)["zero_optimization"] == expected


@pytest.mark.parametrize(
    "table",
    [
        {"zero_stage": 0, "offload_optimizer": "cpu"},
        {"zero_stage": 2, "offload_parameters": "cpu"},
        {"zero_stage": 2, "offload_optimizer": "nvme", "offload_path": "/fast"},
        {"zero_stage": 3, "offload_optimizer": "nvme"},
        {"zero_stage": 3, "offload_path": "/fast"},
    ],
)
def test_offloading_that_deepspeed_cannot_do_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="offload"):
        TrainTable(steps=1, global_batch=1, **table)


def problems(further: dict[str, Any], **table: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check_deepspeed_table(TrainTable(steps=1, global_batch=1, deepspeed=further, **table), CPU)
    return caught.value.problems


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    found: dict[str, Any] = value
    return found


@pytest.mark.parametrize("key", OWNED)
def test_a_key_that_the_recipe_has_its_own_for_is_refused_with_its_name(key: str) -> None:
    (problem,) = problems(nested(key, 1))
    name = OWNED[key].partition(",")[0].partition(" and ")[0]
    assert problem.startswith(f"[train.deepspeed] {key}: the recipe's own key for this is [train] {name}")
    assert name in {field.name for field in attrs.fields(TrainTable)}


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("wall_clock_breakdwn", "wall_clock_breakdown"),
        ("zero_optimisation", "zero_optimization"),
        ("zero_optimization.overlap_com", "overlap_comm"),
        ("zero_optimization.offload_optimizer.pin_memry", "pin_memory"),
        ("data_types.grad_acum_dtype", "grad_accum_dtype"),
        ("comms_logger.enable", "enabled"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_that_deepspeed_knows(path: str, near: str) -> None:
    (problem,) = problems(nested(path, True), offload_optimizer="cpu")
    assert problem == f"[train.deepspeed] {path}: DeepSpeed knows no such key (did you mean {near!r}?)"


@pytest.mark.parametrize(
    "path",
    ["flops_profiler.output_file", "csv_monitor", "nebula", "autotuning", "comet", "timers.a_path", "aio.dir"],
)
def test_a_key_that_writes_elsewhere_is_refused(path: str) -> None:
    (problem,) = problems(nested(path, "../elsewhere"))
    assert problem == f"[train.deepspeed] {path}: DeepSpeed would write outside the run's folder; leave it out"


def test_a_value_that_deepspeed_refuses_is_told_with_its_place() -> None:
    (problem,) = problems(nested("zero_optimization.reduce_bucket_size", "many"))
    assert problem.startswith("[train.deepspeed] zero_optimization.reduce_bucket_size: ") and "'many'" in problem
    (problem,) = problems({"gradient_allreduce_op": "median"})
    assert problem.startswith("[train.deepspeed] gradient_allreduce_op: DeepSpeed refuses it: ")


def test_all_wrong_keys_are_told_at_once() -> None:
    assert len(problems({"zero": 1, "comms_logger": {"enable": True}, "prescale_gradient": True})) == 3


def test_what_deepspeed_knows_is_let_through() -> None:
    further = {
        "wall_clock_breakdown": True,
        "communication_data_type": "fp32",
        "prescale_gradients": False,
        "zero_optimization": {"overlap_comm": False, "stage3_max_live_parameters": 10},
        "data_types": {"grad_accum_dtype": "fp32"},
        "flops_profiler": {"enabled": False, "profile_step": 3},
        "comms_logger": {"enabled": False},
        "fp16": {"loss_scale_window": 100},
    }
    check_deepspeed_table(TrainTable(steps=1, global_batch=1, deepspeed=further), CPU)


def test_an_optimizer_that_cannot_be_compiled_is_told_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainTable(steps=1, global_batch=2, zero_stage=2, offload_optimizer="cpu")
    check_deepspeed_table(train, torch.device("cpu"))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    monkeypatch.setattr("shutil.which", lambda name: None if name == "ninja" else f"/bin/{name}")
    with pytest.raises(RecipeError, match=r"needs the CUDA toolkit \(CUDA_HOME\) and ninja; install them"):
        check_deepspeed_table(train, torch.device("cuda"))


def test_gradients_in_bf16_are_summed_in_float32_where_deepspeed_can() -> None:
    stages = [TrainTable(steps=1, global_batch=2, precision="bf16", zero_stage=stage) for stage in range(4)]
    configs = [deepspeed_config(train, 1) for train in stages]
    assert [config.get("data_types", {}).get("grad_accum_dtype") for config in configs] == [None, *["fp32"] * 3]
    assert [config.get("communication_data_type") for config in configs] == [None, *["fp32"] * 3]
    own = attrs.evolve(stages[2], deepspeed={"communication_data_type": "bf16"})
    assert deepspeed_config(own, 1)["communication_data_type"] == "bf16"


def test_autocast_keeps_weights_in_float32() -> None:
    config = deepspeed_config(TrainTable(steps=1, global_batch=2, precision="bf16-autocast"), 1)
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert not (config["bf16"]["enabled"] or config["fp16"]["enabled"])


def test_deepspeeds_muon_is_not_compiled() -> None:
    import_deepspeed(CPU)
    muon = importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    # A compiled function has what it was made of; that each start would load torch's compiler for.
    assert not hasattr(muon.zeropower_via_newtonschulz5, "_torchdynamo_orig_callable")
    assert hasattr(torch.compile(lambda: None, backend="eager"), "_torchdynamo_orig_callable")
    matrix = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert muon.zeropower_via_newtonschulz5(matrix, 5).shape == (4, 4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiling_is_refused_before_a_run_where_there_is_no_compiler(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    train = TrainTable(steps=1, global_batch=4)
    check_deepspeed_table(train, torch.device(device))
    check_deepspeed_table(attrs.evolve(train, steps=0, compile=True), torch.device(device))
    with pytest.raises(RecipeError, match=r"^\[train\] compile: .* compiler .* and Python.h here; .* compile = false$"):
        check_deepspeed_table(attrs.evolve(train, compile=True), torch.device(device))
    # More than a name, and the content that is looked at in its language.
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\ncase "$*" in "-v -fsyntax-only "*"-xc++ -") exit 0;; esac\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} -v")
    check_deepspeed_table(attrs.evolve(train, compile=True), CPU)


def test_ranks_on_gpus_wait_for_samples_for_less_time_than_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainTable(steps=1, global_batch=4, guards=GuardsTable(data_timeout=1200.0))
    check_deepspeed_table(train, torch.device("cuda"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_deepspeed_table(train, CPU)
    check_deepspeed_table(attrs.evolve(train, guards=GuardsTable(data_timeout=1199.0)), torch.device("cuda"))
    with pytest.raises(RecipeError, match=r"data_timeout: other ranks wait 1200 s .* give less than that"):
        check_deepspeed_table(train, torch.device("cuda"))
