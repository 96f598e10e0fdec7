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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rearkit.errors import RearkitError
from rearkit.system import distributed

WEIGHTS, BUFFERS = "weights", "buffers"
MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # what fp16's loss scaling goes on from


def begin(engine: Any, averages: bool) -> None:
    """Create the optimizer's state, which it would do itself at its first step, so that it can be filled from outside.

    Args:
        engine: DeepSpeed's, before its first step.
        averages: whether to keep moving averages of the weights. They live beside AdamW's moments, and so are divided
            and offloaded like them.
    """
    for master, state in _states(engine):
        # Fused AdamW reads the step count on the device where the weights are.
        fused = isinstance(engine.basic_optimizer, torch.optim.AdamW)
        state["step"] = torch.zeros((), dtype=torch.float32, device=master.device) if fused else 0
        for key in MOMENTS:
            state[key] = torch.zeros_like(master)
        if averages:
            state[AVERAGE] = master.detach().clone()
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2: tell the parameters of it
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _states(engine: Any) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yield the tensors that the optimizer steps on, this rank's, with their state."""
    outer, inner = engine.optimizer, engine.basic_optimizer
    if not hasattr(outer, "fp32_partitioned_groups_flat"):  # below stage 3
        for group in inner.param_groups:
            for master in group["params"]:
                yield master, inner.state[master]
        return
    for index, master in enumerate(outer.fp32_partitioned_groups_flat):
        elsewhere = outer._swappable_optimizer_subgroup(index)  # on a disk
        if elsewhere:
            outer._optimizer_states_and_gradient_swap_in(index)
        yield master, inner.state[master]
        if elsewhere:
            outer._optimizer_states_and_gradient_swap_out(index)


@torch.no_grad()
def update_average(engine: Any, decay: float, step: int) -> None:
    """Move the averages towards the weights after a step, counted from 1.

    ``average = d·average + (1 - d)·weights`` with ``d = min(decay, (1 + step) / (10 + step))``, so that the first
    steps, far from where training ends, are soon forgotten (the rule of TensorFlow's ExponentialMovingAverage).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for master, state in _states(engine):
        state[AVERAGE].lerp_(master.detach(), weight)


@torch.no_grad()
def whole(engine: Any, parameter: Any, key: str | None = None) -> Tensor:
    """Return a parameter's master weights, or its optimizer state under ``key``, whole; all ranks call this."""
    if not parameter.requires_grad:
        with _gathered(parameter):
            copy: Tensor = parameter.detach().clone()
            return copy
    if hasattr(parameter, "ds_id"):  # stage 3
        tensor: Tensor = parameter._z3_optimizer.get_full_hp_param(parameter, key)
    elif hasattr(parameter, "_hp_mapping"):  # stages 1 and 2
        tensor = parameter.get_full_hp_param(key)
    else:
        master = _masters(engine).get(id(parameter), parameter)
        tensor = master.detach() if key is None else engine.basic_optimizer.state[master][key]
    return tensor


@torch.no_grad()
def _put(engine: Any, parameter: Any, value: Tensor, key: str | None = None) -> None:
    """Set what `whole` returns."""
    if hasattr(parameter, "ds_id"):
        part = parameter.ds_tensor.numel()  # the last rank's is padded
        start = part * distributed.rank()
        padded = F.pad(value.flatten(), (0, part * distributed.world_size() - value.numel()))
        parameter._z3_optimizer.set_local_hp_param(padded[start : start + part], parameter, key)
    elif hasattr(parameter, "_hp_mapping"):
        parameter.set_full_hp_param(value, key)
    else:
        master = _masters(engine).get(id(parameter), parameter)
        (master if key is None else engine.basic_optimizer.state[master][key]).copy_(value)


def _masters(engine: Any) -> dict[int, Tensor]:
    """At stage 0 in 16 bits: the float32 copy of each parameter, by the parameter's identity."""
    groups = zip(
        getattr(engine.optimizer, "fp16_groups", ()), getattr(engine.optimizer, "fp32_groups", ()), strict=True
    )
    return {id(low): high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}


@contextlib.contextmanager
def _gathered(parameter: nn.Parameter, writer: int | None = None) -> Iterator[None]:
    """Make a parameter whole for a while; with ``writer``, keep what that rank makes of it."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer, enabled=hasattr(parameter, "ds_id")):
        yield


@contextlib.contextmanager
def averaged(engine: Any) -> Iterator[None]:
    """Within this context, the module computes with the averaged weights; all ranks enter it."""
    parameters = [p for p in engine.module.parameters() if p.requires_grad]
    kept = {}  # where the optimizer steps on the parameter itself
    for parameter in parameters:
        if whole(engine, parameter).data_ptr() == parameter.data_ptr():
            kept[id(parameter)] = parameter.detach().clone()
        _show(parameter, whole(engine, parameter, AVERAGE))
    try:
        yield
    finally:
        for parameter in parameters:
            before = kept.pop(id(parameter), None)
            _show(parameter, whole(engine, parameter) if before is None else before)


def adopt_average(engine: Any) -> None:
    """Make the averaged weights the module's, for good, once training is over."""
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            _show(parameter, whole(engine, parameter, AVERAGE))


@torch.no_grad()
def _show(parameter: nn.Parameter, value: Tensor) -> None:
    """Set what the module computes with, leaving alone what the optimizer steps on."""
    with _gathered(parameter, writer=0):
        parameter.data.copy_(value)


def write(engine: Any, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write this rank's share of the state into a folder; all ranks call this.

    Returns:
        the file, and what else there is to remember: numbers that all ranks have alike.
    """
    keys = (None, *MOMENTS, *((AVERAGE,) if _keeps_averages(engine) else ()))
    module, rank, world = engine.module, distributed.rank(), distributed.world_size()
    mine: dict[str, Tensor] = {}
    loads = [0] * world
    for name, parameter in module.named_parameters():
        owner = loads.index(min(loads))
        loads[owner] += getattr(parameter, "ds_numel", parameter.numel())
        for key in keys if parameter.requires_grad else (None,):
            tensor = whole(engine, parameter, key)
            if owner == rank:
                mine[f"{key or WEIGHTS}/{name}"] = tensor.detach().cpu().contiguous()
    if rank == 0:
        mine |= {f"{BUFFERS}/{name}": buffer.cpu().contiguous() for name, buffer in _buffers(module).items()}
    path = folder / f"state-{rank:05d}-of-{world:05d}.safetensors"
    save_file(mine, path)
    scaler = _scaler(engine)
    updates = max(int(state["step"]) for _, state in _states(engine))
    return path, {"updates": updates, "loss_scale": {n: getattr(scaler, n) for n in SCALE if hasattr(scaler, n)}}


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


def restore(engine: Any, folder: Path, facts: Mapping[str, Any]) -> None:
    """Load the optimizer's state after `begin`, into an engine around a module that `read_weights` was called on.

    Args:
        engine: DeepSpeed's.
        folder: where `write` was called.
        facts: what `write` returned.
    """
    with _tensors(folder) as tensors:
        for name, parameter in engine.module.named_parameters():
            for key in (None, *MOMENTS, AVERAGE) if parameter.requires_grad else ():
                stored = f"{key or WEIGHTS}/{name}"
                if stored in tensors and (key != AVERAGE or _keeps_averages(engine)):
                    _put(engine, parameter, tensors[stored].get_tensor(stored), key)
    for _, state in _states(engine):
        if isinstance(state["step"], Tensor):
            state["step"].fill_(facts["updates"])
        else:
            state["step"] = facts["updates"]
    scaler = _scaler(engine)
    for name, value in facts["loss_scale"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


def _keeps_averages(engine: Any) -> bool:
    return any(AVERAGE in state for _, state in _states(engine))


def _scaler(engine: Any) -> Any:
    """What holds the state of fp16's loss scaling, under whichever name the engine's optimizer has it."""
    outer = engine.optimizer
    return getattr(outer, "loss_scaler", getattr(outer, "loss_scale_config", None))


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
