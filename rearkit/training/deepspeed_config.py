"""From the recipe's ``[train]`` table to DeepSpeed's configuration; the check of what ``[train.deepspeed]`` adds."""

from __future__ import annotations

import logging
import os
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rearkit.errors import RecipeError, did_you_mean
from rearkit.recipe.train_table import TrainTable

# What the recipe has keys of its own for: DeepSpeed's key, and the recipe's.
OWNED = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "micro_batch, from which accumulation follows",
    "managed_gradient_accumulation": "micro_batch, from which accumulation follows",
    "gradient_clipping": "clip",
    "steps_per_print": "log_every",
    "optimizer": "lr, betas and weight_decay",
    "scheduler": "lr, end_lr and warmup_steps",
    "bf16.enabled": "precision",
    "bfloat16": "precision",
    "fp16.enabled": "precision",
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


def batch_layout(train: TrainTable, world: int) -> tuple[int, int]:
    """Return micro-batch and accumulation steps that make the recipe's global batch on ``world`` ranks.

    Raises:
        RecipeError: they don't divide; the message says what does.
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
    """Write DeepSpeed's configuration for a recipe's table; ``[train.deepspeed]`` is merged into it."""
    micro, accumulation = batch_layout(train, world)
    zero: dict[str, Any] = {"stage": train.zero_stage}
    for key, device in (("offload_optimizer", train.offload_optimizer), ("offload_param", train.offload_parameters)):
        if device != "none":
            zero[key] = {"device": device} | ({"nvme_path": train.offload_path} if device == "nvme" else {})
    config: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if is_unwrapped(train) else train.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # offloaded on a machine without CUDA, torch's AdamW will do
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        "steps_per_print": 2**31 - 1,  # we report progress ourselves
        "wall_clock_breakdown": False,
    }
    return _merged(config, train.deepspeed)


def is_unwrapped(train: TrainTable) -> bool:
    """Tell whether DeepSpeed steps the optimizer as it is, without a look at the gradients."""
    return train.zero_stage == 0 and train.precision == "fp32"


def _merged(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if nested else value
    return merged


def check_deepspeed_table(train: TrainTable, device: torch.device) -> None:
    """Hold ``[train.deepspeed]`` against what the installed DeepSpeed reads, before anything runs.

    Raises:
        RecipeError: all keys that DeepSpeed does not know, that the recipe has a key of its own for, or whose values
            DeepSpeed refuses.
    """
    if not train.deepspeed:
        return
    problems = [
        f"[train.deepspeed] {key}: the recipe's own key for this is [train] {OWNED[key]}"
        for key in _paths(train.deepspeed)
        if key in OWNED
    ]
    if not problems:
        import_deepspeed(device)
        known = _Asked({})
        _read(known)
        config = deepspeed_config(train, 1)
        for key in train.deepspeed:
            if key in known.asked:
                problems += _problems_of(key, config[key])
            else:
                problems.append(f"[train.deepspeed] {key}: DeepSpeed knows no such key{did_you_mean(key, known.asked)}")
    if problems:
        raise RecipeError(problems)


def _problems_of(key: str, value: Any) -> list[str]:
    """What DeepSpeed has against a key's value."""
    from pydantic import ValidationError

    content = _Asked({key: value})
    try:
        _read(content)
    except ValidationError as error:
        problems = []
        for found in error.errors():
            path = [str(part) for part in found["loc"]]
            where = ".".join(path if path[:1] == [key] else [key, *path])
            if found["type"] == "extra_forbidden":
                hint = did_you_mean(path[-1], _fields(error.title))
                problems.append(f"[train.deepspeed] {where}: DeepSpeed knows no such key{hint}")
            else:
                problems.append(f"[train.deepspeed] {where}: {found['msg']}, got {found['input']!r}")
        return problems
    except Exception as error:  # its own checks are asserts, and lines that fail on a value of another type
        return [f"[train.deepspeed] {key}: DeepSpeed refuses it: {shortened(error)}"]
    return [f"[train.deepspeed] {path}: DeepSpeed knows no such key{hint}" for path, hint in content.unasked()]


def _read(content: dict[str, Any]) -> None:
    """Let DeepSpeed read a configuration, for a single rank."""
    from deepspeed.runtime.config import DeepSpeedConfig

    dict.setdefault(content, "train_micro_batch_size_per_gpu", 1)
    DeepSpeedConfig(content)


class _Asked(dict[str, Any]):
    """A configuration that notes which keys its reader asks for: DeepSpeed has no list of them."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__({key: _Asked(value) if isinstance(value, dict) else value for key, value in content.items()})
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self.asked.update(super().keys())  # who takes all keys, as `**` does, checks them
        return super().__iter__()

    def keys(self) -> Any:
        return self  # whose `in` and iteration take note

    def items(self) -> Any:
        self.asked.update(super().keys())
        return super().items()

    def __copy__(self) -> _Asked:
        return self

    def unasked(self) -> Iterator[tuple[str, str]]:
        """Yield the dotted paths that nobody asked for, each with the nearest that somebody did ask for."""
        for key, value in super().items():
            if key not in self.asked:
                yield key, did_you_mean(key, self.asked)
            elif isinstance(value, _Asked) and dict.get(value, "enabled", True):  # else nobody looks inside
                yield from ((f"{key}.{path}", hint) for path, hint in value.unasked())


def _fields(title: str) -> set[str]:
    """The names that a section of DeepSpeed's configuration and the sections below it have."""
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    names: set[str] = set()
    models = [model for model in DeepSpeedConfigModel.__subclasses__() if model.__name__ == title]
    for model in models:
        for name, field in model.model_fields.items():
            names.add(field.alias or name)
            models += [m for m in DeepSpeedConfigModel.__subclasses__() if m.__name__ in str(field.annotation)]
    return names


def _paths(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def shortened(error: Exception) -> str:
    """Return somebody else's error on one line."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed without its chatter, for the right kind of device."""
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
    # Its shared-memory all-reduce for CPUs would be compiled at the first run: half a minute, and a compiler needed.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
