"""DeepSpeed's configuration, made from the recipe's ``[train]`` table."""

from __future__ import annotations

import contextlib
import logging
import os
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from rearkit.errors import RecipeError
from rearkit.recipe.train_table import TrainTable


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
    # The gradients of micro-batches and ranks are summed in float32: bfloat16 keeps 8 bits of a sum of thousands. On an
    # H100 it is the faster way, too (docs/gpu.md). Without ZeRO, DeepSpeed has only the precision of the weights.
    if train.precision == "bf16-autocast":
        # The modules are those whose gradients would be rounded before they are summed; all compute in bfloat16.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    if train.precision == "bf16" and train.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        # Of sums that are in float32 already, too, as on one rank: left out, they are rounded to be sent.
        config["communication_data_type"] = "fp32"
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


def on_one_line(error: Exception) -> str:
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
        import deepspeed.runtime.bf16_optimizer
        import deepspeed.runtime.config

        _import_muon()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It prints the memory, whatever the level, and sets back CUDA's peak.
    deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *given, **options: None
    # Its shared-memory all-reduce for CPUs is compiled at the first run, which takes half a minute and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon with its functions as they are.

    Every engine imports it, to know its class. To have them compiled loads all of torch's compiler, which takes seconds
    of each start; we pass an optimizer of our own.
    """
    from deepspeed.runtime import compiler

    real = compiler.compile
    compiler.compile = lambda *arguments, **options: lambda function: function
    try:
        # Earlier versions have none.
        with contextlib.suppress(ImportError):
            import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = real
