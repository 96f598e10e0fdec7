"""DeepSpeed's configuration, made from the recipe's ``[train]`` table; and the check of ``[train.deepspeed]``."""

from __future__ import annotations

import logging
import os
import shutil
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from rearkit.errors import RecipeError, did_you_mean
from rearkit.recipe.train_table import TrainTable

# DeepSpeed's keys for which the recipe has keys of its own. They are refused, since either could silently win.
OWNED = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "micro_batch, from which accumulation is derived",
    "managed_gradient_accumulation": "micro_batch, from which accumulation is derived",
    "gradient_clipping": "clip",
    "steps_per_print": "log_every",
    "optimizer": "lr, betas and weight_decay",
    "scheduler": "lr, end_lr and warmup_steps",
    "bf16.enabled": "precision",
    "bfloat16": "precision",
    "fp16.enabled": "precision",
    "torch_autocast": "precision",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer.device": "offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "offload_path",
    "zero_optimization.offload_param.device": "offload_parameters",
    "zero_optimization.offload_param.nvme_path": "offload_path",
    "zero_optimization.cpu_offload": "offload_optimizer",
    "zero_optimization.cpu_offload_param": "offload_parameters",
    "activation_checkpointing": "activation_checkpointing",
    "compile": "compile",
    "checkpoint": "checkpoint_every, keep_checkpoints and keep_every",
}

# The top-level keys that DeepSpeed 0.19 reads. It has no such list and ignores unknown keys, so a typing error would go
# unnoticed.
KNOWN = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "amp",
        "autotuning",
        "bf16",
        "bfloat16",
        "checkpoint",
        "comet",
        "comms_logger",
        "communication_data_type",
        "compile",
        "compression_training",
        "csv_monitor",
        "curriculum_learning",
        "data_efficiency",
        "data_types",
        "dataloader_drop_last",
        "datastates_ckpt",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "eigenvalue",
        "elasticity",
        "expert_parallel",
        "flops_profiler",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_allreduce_op",
        "gradient_clipping",
        "gradient_predivide_factor",
        "graph_harvesting",
        "hybrid_engine",
        "log_level",
        "managed_gradient_accumulation",
        "memory_breakdown",
        "nebula",
        "optimizer",
        "pipeline",
        "prescale_gradients",
        "progressive_layer_drop",
        "quantize_training",
        "scheduler",
        "seq_parallel_communication_data_type",
        "sparse_attention",
        "sparse_gradients",
        "steps_per_print",
        "tensor_parallel",
        "tensorboard",
        "timers",
        "torch_autocast",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "use_data_before_expert_parallelism",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
# The keys of the only section for which DeepSpeed has no pydantic model, which would refuse unknown keys.
DATA_TYPES = frozenset({"grad_accum_dtype"})


def batch_layout(train: TrainTable, world: int) -> tuple[int, int]:
    """Return the micro-batch and the accumulation steps that make up the recipe's global batch on ``world`` ranks.

    Raises:
        RecipeError: they don't divide the global batch; the message lists what does.
    """
    if train.global_batch % world:
        near = [n for n in range(1, world + 1) if train.global_batch % n == 0][-1]
        raise RecipeError(
            [
                f"[train] global_batch: {train.global_batch} samples don't divide over {world} ranks; "
                f"use {near} ranks, or global_batch = {train.global_batch // world * world or world}"
            ]
        )
    share = train.global_batch // world
    micro = train.micro_batch or share
    if share % micro:
        divisors = [n for n in range(1, share + 1) if share % n == 0]
        raise RecipeError(
            [
                f"[train] micro_batch: {micro} does not divide the {share} samples of each of {world} ranks; "
                f"these do: {', '.join(map(str, divisors))}"
            ]
        )
    return micro, share // micro


def deepspeed_config(train: TrainTable, world: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration for a recipe's table, with ``[train.deepspeed]`` merged into it."""
    micro, accumulation = batch_layout(train, world)
    zero: dict[str, Any] = {"stage": train.zero_stage}
    for key, device in (("offload_optimizer", train.offload_optimizer), ("offload_param", train.offload_parameters)):
        if device != "none":
            zero[key] = {"device": device} | ({"nvme_path": train.offload_path} if device == "nvme" else {})
    config: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        # `GuardedAdamW` clips by itself.
        "gradient_clipping": 0.0 if is_unwrapped(train) else train.clip,
        "zero_optimization": zero,
        # Without CUDA, offloaded state stays on the CPU anyway, so torch's AdamW will do.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        # Never: rearkit reports progress itself.
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }
    if train.precision == "bf16-autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    # The gradients of micro-batches and ranks are summed in float32: bfloat16 keeps 8 bits of a sum of thousands. On an
    # H100 it is the faster way, too (docs/gpu.md). Without ZeRO, DeepSpeed has only the precision of the weights.
    if train.precision == "bf16" and train.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(config, train.deepspeed)


def is_unwrapped(train: TrainTable) -> bool:
    """Return whether DeepSpeed leaves the optimizer unwrapped, so that it does not check the gradients."""
    return train.zero_stage == 0 and train.precision in ("fp32", "bf16-autocast")


def _merged(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if nested else value
    return merged


def check_deepspeed_table(train: TrainTable, device: torch.device) -> None:
    """Check ``[train.deepspeed]`` before anything runs.

    Raises:
        RecipeError: some keys are unknown to DeepSpeed, have values that it refuses, or belong to keys of the recipe's
            own; the message lists all of them.
    """
    _check_offloading(train, device)
    if not train.deepspeed:
        return
    problems = [
        f"[train.deepspeed] {key}: the recipe's own key for this is [train] {OWNED[key]}"
        for key in _paths(train.deepspeed)
        if key in OWNED
    ]
    if not problems:
        import_deepspeed(device)
        config = deepspeed_config(train, 1)
        for key in train.deepspeed:
            known = key in KNOWN
            problems += _problems_of(key, config[key]) if known else [_unknown(key, key, KNOWN)]
    if problems:
        raise RecipeError(problems)


def _check_offloading(train: TrainTable, device: torch.device) -> None:
    """Check that DeepSpeed's optimizer for CPUs can be compiled, which it is at its first use, hours into a run."""
    if train.offload_optimizer == "none" or device.type != "cuda":
        return
    import_deepspeed(device)
    from deepspeed.git_version_info import installed_ops
    from torch.utils.cpp_extension import CUDA_HOME

    found = {"the CUDA toolkit (CUDA_HOME)": CUDA_HOME, "ninja": shutil.which("ninja"), "c++": shutil.which("c++")}
    lacking = [name for name, path in found.items() if not path]
    if lacking and not installed_ops.get("cpu_adam"):
        raise RecipeError(
            [
                "[train] offload_optimizer: DeepSpeed compiles its optimizer for CPUs here, which needs "
                f"{' and '.join(lacking)}; install them, or leave offload_optimizer out"
            ]
        )


def _problems_of(key: str, value: Any) -> list[str]:
    """Return DeepSpeed's objections to a key's value, one message each."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    if key == "data_types" and isinstance(value, dict):
        return [_unknown(f"{key}.{name}", name, DATA_TYPES) for name in value if name not in DATA_TYPES]
    # One key at a time, so that each objection can be put to its key. A batch size is the least that it needs.
    try:
        DeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, key: value})
    except ValidationError as error:
        problems = []
        for found in error.errors():
            path = [str(part) for part in found["loc"]]
            where = ".".join(path if path[:1] == [key] else [key, *path])
            if found["type"] == "extra_forbidden":
                problems.append(_unknown(where, path[-1], _section_keys()))
            else:
                problems.append(f"[train.deepspeed] {where}: {found['msg']}, got {found['input']!r}")
        return problems
    except Exception as error:
        # DeepSpeed's own checks are asserts, or lines that happen to fail on a value of another type.
        return [f"[train.deepspeed] {key}: DeepSpeed refuses it: {shortened(error)}"]
    return []


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    return f"[train.deepspeed] {where}: DeepSpeed knows no such key{did_you_mean(name, known)}"


def _section_keys() -> set[str]:
    """Return the keys of DeepSpeed's commonly used sections, to suggest the one that was meant."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    sections = (
        CommsLoggerConfig,
        CSVConfig,
        TensorBoardConfig,
        WandbConfig,
        DeepSpeedZeroConfig,
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )
    return {field.alias or name for section in sections for name, field in section.model_fields.items()}


def _paths(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def shortened(error: Exception) -> str:
    """Return another library's error on one line of at most 300 characters."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for a kind of device, without its messages."""
    # DeepSpeed picks its device while it is imported, and would take a GPU where the recipe says "cpu".
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # torch deprecates calls that DeepSpeed makes at every step.
    warnings.filterwarnings(
        "ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor).*", category=FutureWarning
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.config
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its shared-memory all-reduce for CPUs is compiled at the first run, which takes half a minute and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
