"""The check of ``[train.deepspeed]``, and of what DeepSpeed and torch.compile need, before anything runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from rearkit.errors import RecipeError, did_you_mean
from rearkit.layers.fusing import compiles_extensions, has_what_triton_needs
from rearkit.recipe.train_table import TrainTable
from rearkit.system import distributed
from rearkit.training.deepspeed_config import deepspeed_config, import_deepspeed, on_one_line

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
    "tensorboard": "trackers",
    "wandb": "trackers",
}
# Sections that write to folders of their own choice, send measurements to accounts, or start runs of their own.
OUTSIDE = frozenset({"autotuning", "comet", "csv_monitor", "datastates_ckpt", "nebula"})
# Keys that name a file or a folder to write to, in whatever section.
WRITES = re.compile(r"(.*_)?(path|file|dir|folder)")

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


def check_deepspeed_table(train: TrainTable, device: torch.device) -> None:
    """Check ``[train.deepspeed]``, and what a training needs to be installed, before anything runs.

    Raises:
        RecipeError: some keys are unknown to DeepSpeed, have values that it refuses, or belong to keys of the recipe's
            own; the message lists all of them. Or a compiler is missing, or ranks would not wait for samples so long.
    """
    _check_offloading(train, device)
    _check_compiler(train, device)
    most = distributed.STEP_PATIENCE.total_seconds()
    if device.type == "cuda" and distributed.world_size() > 1 and train.guards.data_timeout >= most:
        raise RecipeError(
            [f"[train.guards] data_timeout: other ranks wait {most:g} s for one without samples; give less than that"]
        )
    if not train.deepspeed:
        return
    problems = [
        f"[train.deepspeed] {key}: the recipe's own key for this is [train] {OWNED[key]}"
        for key in _paths(train.deepspeed)
        if key in OWNED
    ]
    problems += [
        f"[train.deepspeed] {key}: DeepSpeed would write outside the run's folder; leave it out"
        for key in _paths(train.deepspeed)
        if key not in OWNED and (key in OUTSIDE or WRITES.fullmatch(key.rpartition(".")[2]))
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


def _check_compiler(train: TrainTable, device: torch.device) -> None:
    """Check that torch.compile has what it compiles with, which it looks for at the first step, hours into a run."""
    if not train.compile or train.steps == 0:
        return
    if device.type == "cuda":
        works, what = has_what_triton_needs(), "Triton, a C compiler (CC, gcc or clang)"
    else:
        # The variable may hold more than a name, such as "ccache g++".
        compiler = shlex.split(os.environ.get("CXX") or "g++")
        works, what = compiles_extensions(compiler, "c++"), "a C++ compiler (CXX or g++)"
    if not works:
        raise RecipeError(
            [
                f"[train] compile: torch.compile needs {what} and Python.h here; install them (apt-get install "
                "g++ python3-dev), or set compile = false"
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
        return [f"[train.deepspeed] {key}: DeepSpeed refuses it: {on_one_line(error)}"]
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
