"""The training state as whole tensors by name, which any number of ranks and any ZeRO stage can take up again.

DeepSpeed divides master weights and optimizer state among the ranks, each stage in its own way. Here they are put
together, one parameter at a time, and divided again. Tensors of a state, float32 but for the buffers:

- ``weights/NAME``: the master weights (the precision that the optimizer works in), and frozen parameters as they are;
- ``exp_avg/NAME``, ``exp_avg_sq/NAME``: AdamW's moments; ``average/NAME``: the moving average of the weights, if any;
- ``buffers/NAME``.

Each rank writes some of the tensors into a file of its own; all ranks read all files.
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

WEIGHTS, BUFFERS = "weights", "buffers"


@torch.no_grad()
def update_average(engine: Engine, decay: float, step: int) -> None:
    """Move the averages towards the weights after a step, counted from 1.

    ``average = d·average + (1 - d)·weights`` with ``d = min(decay, (1 + step) / (10 + step))``, so that the first
    steps, far from where training ends, are soon forgotten (the rule of TensorFlow's ExponentialMovingAverage).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for master, state in engine.states():
        state[AVERAGE].lerp_(master.detach(), weight)


@contextlib.contextmanager
def averaged(engine: Engine) -> Iterator[None]:
    """Within this context, the module computes with the averaged weights; all ranks enter it."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    kept = {}  # where the optimizer steps on the parameter itself
    for parameter in parameters:
        if engine.whole(parameter).data_ptr() == parameter.data_ptr():
            kept[id(parameter)] = parameter.detach().clone()
        engine.show(parameter, engine.whole(parameter, AVERAGE))
    try:
        yield
    finally:
        for parameter in parameters:
            before = kept.pop(id(parameter), None)
            engine.show(parameter, engine.whole(parameter) if before is None else before)


def adopt_average(engine: Engine) -> None:
    """Make the averaged weights the module's, for good, once training is over."""
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            engine.show(parameter, engine.whole(parameter, AVERAGE))


def write(engine: Engine, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write this rank's share of the state into a folder; all ranks call this.

    Returns:
        the file, and what else there is to remember: numbers that all ranks have alike.
    """
    rank = distributed.rank()
    world = distributed.world_size()
    keys = (None, *MOMENTS, *((AVERAGE,) if engine.keeps_averages else ()))
    mine: dict[str, Tensor] = {}
    # Each tensor goes to the rank that has the least so far, which all ranks work out alike.
    loads = [0] * world
    for name, parameter in engine.module.named_parameters():
        owner = loads.index(min(loads))
        loads[owner] += engine.size(parameter)
        for key in keys if parameter.requires_grad else (None,):
            tensor = engine.whole(parameter, key)
            if owner == rank:
                mine[f"{key or WEIGHTS}/{name}"] = tensor.detach().cpu().contiguous()
    if rank == 0:
        buffers = _buffers(engine.module)
        mine |= {f"{BUFFERS}/{name}": buffer.cpu().contiguous() for name, buffer in buffers.items()}
    path = folder / f"state-{rank:05d}-of-{world:05d}.safetensors"
    save_file(mine, path)
    return path, engine.facts()


def read_weights(module: nn.Module, folder: Path) -> None:
    """Load weights and buffers into a module that no engine has wrapped yet.

    Raises:
        RearkitError: they are another model's.
    """
    own = dict(module.named_parameters()) | _buffers(module)
    with torch.no_grad(), _tensors(folder) as tensors:
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
    """Load the optimizer's state into an engine around a module that `read_weights` was called on.

    Args:
        engine: after `Engine.create_state`.
        folder: where `write` was called.
        facts: what `write` returned.
    """
    averages = engine.keeps_averages
    with _tensors(folder) as tensors:
        for name, parameter in engine.module.named_parameters():
            for key in (None, *MOMENTS, AVERAGE) if parameter.requires_grad else ():
                stored = f"{key or WEIGHTS}/{name}"
                if stored in tensors and (key != AVERAGE or averages):
                    engine.put(parameter, tensors[stored].get_tensor(stored), key)
    engine.set_facts(facts)


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are part of a module's state."""
    names = {name for name, _ in module.named_buffers()}
    return {name: tensor for name, tensor in module.state_dict().items() if name in names}


@contextlib.contextmanager
def _tensors(folder: Path) -> Iterator[dict[str, Any]]:
    """Open the files of a state: for each tensor's name, the file that it is in."""
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(safetensors.safe_open(path, "pt"))
            for path in sorted(folder.glob("state-*.safetensors"))
        ]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118
