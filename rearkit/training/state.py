"""The training state as whole tensors by name, so that it can be resumed on any number of ranks and any ZeRO stage.

DeepSpeed divides master weights and optimizer state among the ranks, and each stage does it in its own way. This module
gathers them one parameter at a time, and divides them again. The tensors of a state (float32, except the buffers):

- ``weights/NAME``: the master weights (in the optimizer's precision), and frozen parameters as they are;
- ``exp_avg/NAME``, ``exp_avg_sq/NAME``: AdamW's moments; ``average/NAME``: the moving average of the weights, if any;
- ``buffers/NAME``.

Each rank writes some of the tensors to its own file; all ranks read all files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rearkit.errors import RearkitError
from rearkit.system import distributed
from rearkit.training.engine import AVERAGE, MOMENTS, Engine

WEIGHTS = "weights"
BUFFERS = "buffers"


@torch.no_grad()
def update_average(engine: Engine, decay: float, step: int) -> None:
    """Update the moving averages after a step (counted from 1).

    ``average = d·average + (1 - d)·weights`` with ``d = min(decay, (1 + step) / (10 + step))`` (the rule of
    TensorFlow's ExponentialMovingAverage). The lower decay at first forgets the untrained weights quickly.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    # Each rank updates its own part of the weights, so nothing is gathered.
    for master, state in engine.states():
        state[AVERAGE].lerp_(master.detach(), weight)


@contextlib.contextmanager
def averaged(engine: Engine) -> Iterator[None]:
    """Within this context, the module computes with the averaged weights. All ranks must enter it."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    # Copies of the parameters that are their own master weights (ZeRO stage 0 in fp32): showing the average overwrites
    # those. All others are restored from separate master weights, without a second copy of the model.
    kept = {}
    for parameter in parameters:
        if engine.whole(parameter).data_ptr() == parameter.data_ptr():
            kept[id(parameter)] = parameter.detach().clone()
        engine.show(parameter, engine.whole(parameter, AVERAGE))
    try:
        yield
    finally:
        # Also after an error, since training or saving may go on with this module.
        for parameter in parameters:
            before = kept.pop(id(parameter), None)
            engine.show(parameter, engine.whole(parameter) if before is None else before)


def write(engine: Engine, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write this rank's share of the state to a folder. All ranks must call this.

    Returns:
        the file, and the rest of the state: numbers that are the same on all ranks.
    """
    rank = distributed.rank()
    world = distributed.world_size()
    keys = (None, *MOMENTS, *((AVERAGE,) if engine.keeps_averages else ()))
    mine: dict[str, Tensor] = {}
    # Each parameter goes to the rank that has the least to write so far, so that all finish together. Every rank
    # computes the same assignment, without communication.
    loads = [0] * world
    for name, parameter in engine.module.named_parameters():
        owner = loads.index(min(loads))
        loads[owner] += engine.size(parameter)
        for key in keys if parameter.requires_grad else (None,):
            # On all ranks, whoever owns it: each gives its part. One whole tensor at a time is on the device.
            tensor = engine.whole(parameter, key)
            if owner == rank:
                # safetensors refuses tensors that are not contiguous.
                mine[f"{key or WEIGHTS}/{name}"] = tensor.detach().cpu().contiguous()
    # DeepSpeed does not divide buffers, so one rank has them all.
    if rank == 0:
        buffers = _buffers(engine.module)
        mine |= {f"{BUFFERS}/{name}": buffer.cpu().contiguous() for name, buffer in buffers.items()}
    path = folder / f"state-{rank:05d}-of-{world:05d}.safetensors"
    save_file(mine, path)
    return path, engine.facts()


def read_weights(module: nn.Module, folder: Path) -> None:
    """Load weights and buffers into a module that no engine has wrapped yet.

    Raises:
        RearkitError: the state belongs to another model.
    """
    own = dict(module.named_parameters()) | _buffers(module)
    with torch.no_grad(), _tensors(folder) as tensors:
        # A module has no weight and buffer of the same name, so the kind can be cut off.
        found = {name.partition("/")[2]: name for name in tensors if name.startswith((f"{WEIGHTS}/", f"{BUFFERS}/"))}
        if found.keys() != own.keys():
            odd = sorted(found.keys() ^ own.keys())[0]
            raise RearkitError(
                f"{folder}: the checkpoint of another model ({odd} is not in both); choose another folder"
            )
        for name, tensor in own.items():
            value = tensors[found[name]].get_tensor(found[name])
            if value.shape != tensor.shape:
                raise RearkitError(
                    f"{folder}: the checkpoint of a model of another size ({name} is {tuple(value.shape)} there, "
                    f"{tuple(tensor.shape)} here); choose another folder"
                )
            tensor.copy_(value)


def restore(engine: Engine, folder: Path, facts: dict[str, Any]) -> None:
    """Load the optimizer's state into an engine whose module was loaded by `read_weights`.

    Args:
        engine: after `Engine.create_state`.
        folder: the folder that `write` was given.
        facts: what `write` returned.
    """
    averages = engine.keeps_averages
    with _tensors(folder) as tensors:
        for name, parameter in engine.module.named_parameters():
            # The weights too, though `read_weights` has loaded them: for 16 bits, DeepSpeed makes the master weights
            # from the module's rounded ones.
            # Of frozen weights, only those of which the engine kept a float32 copy.
            for key in (None, *MOMENTS, AVERAGE) if parameter.requires_grad else (None,):
                stored = f"{key or WEIGHTS}/{name}"
                # An earlier call may have trained with averages and this one without, or the other way round.
                if stored not in tensors or (key == AVERAGE and not averages):
                    continue
                value = tensors[stored].get_tensor(stored)
                if parameter.requires_grad or value.dtype == torch.float32:
                    engine.put(parameter, value, key)
    engine.set_facts(facts)


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are part of a module's state dict."""
    names = {name for name, _ in module.named_buffers()}
    return {name: tensor for name, tensor in module.state_dict().items() if name in names}


@contextlib.contextmanager
def _tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Open the files of a state, and yield for each tensor's name the file that holds it."""
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(safetensors.safe_open(path, "pt"))
            for path in sorted(folder.glob("state-*.safetensors"))
        ]
        # `safe_open` is no mapping: it can be asked for its keys, but not iterated.
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118
