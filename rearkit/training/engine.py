"""DeepSpeed's engine around a backbone and its objective. Only this module uses DeepSpeed's private names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.errors import RecipeError
from rearkit.recipe.train_table import TrainTable
from rearkit.system import distributed
from rearkit.training.batches import Batch
from rearkit.training.deepspeed_config import (
    batch_layout,
    deepspeed_config,
    import_deepspeed,
    is_unwrapped,
    on_one_line,
)
from rearkit.training.guards import GuardedAdamW
from rearkit.training.joined_gradients import join_gradients
from rearkit.training.schedule import parameter_groups
from rearkit.training.train_module import TrainModule

MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"
# The state of fp16's loss scaling.
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Engine:
    """Joins the other ranks, wraps a module, and steps its optimizer.

    The *state* of a parameter is a set of tensors, each with a key: None for the master weights (in the optimizer's
    precision), `MOMENTS` for AdamW's moments, `AVERAGE` for the moving average of the weights. DeepSpeed divides them
    among the ranks, and each ZeRO stage does it in its own way.

    Args:
        module: the module, on the device.
        train: the recipe's table.
        device: this rank's device.

    Attributes:
        module: the module that is trained.
        micro_batch: samples per forward pass.
        accumulation: micro-batches per step.

    Raises:
        RecipeError: DeepSpeed refuses its configuration.
    """

    def __init__(self, module: TrainModule, train: TrainTable, device: torch.device) -> None:
        deepspeed = import_deepspeed(device)
        # Stage 3 puts its own function in its place, for all of the process and for good.
        self._linear = F.linear
        distributed.start(device)
        if device.type == "cuda":
            # DeepSpeed takes the GPU of this number, where a rank may see none but its own (see `local_device`).
            os.environ["LOCAL_RANK"] = str(device.index or 0)
        deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
        world = distributed.world_size()
        self.micro_batch, self.accumulation = batch_layout(train, world)
        groups = parameter_groups(module, train.weight_decay)
        optimizer: torch.optim.Optimizer
        if is_unwrapped(train):
            # DeepSpeed steps this one as it is, without looking for NaN, so it has to check by itself.
            optimizer = GuardedAdamW(groups, train.clip, lr=train.lr, betas=train.betas)
        elif train.offload_optimizer != "none" and device.type == "cuda":
            # Offloaded state is updated on the CPU, which this optimizer has fast code for.
            optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, lr=train.lr, betas=train.betas)
        else:
            optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)
        refusals = (AssertionError, ValueError, TypeError, deepspeed.runtime.config.DeepSpeedConfigError)
        try:
            with distributed.patient_groups():
                self._engine, *_ = deepspeed.initialize(
                    model=module, optimizer=optimizer, config=deepspeed_config(train, world)
                )
        except refusals as error:
            key = "[train.deepspeed]" if train.deepspeed else f'[train] precision = "{train.precision}"'
            # Then the user chose nothing that could be refused, so it is a bug of ours, which needs its traceback.
            if not train.deepspeed and train.precision == "fp32":
                raise
            raise RecipeError([f"{key}: DeepSpeed refuses it: {on_one_line(error)}"]) from error
        if (scaler := getattr(self._engine.optimizer, "loss_scaler", None)) is not None:
            # `StepGuard` counts the skipped steps instead, and names the shards.
            scaler.raise_error_at_min_scale = False
        if device.type == "cuda":
            join_gradients(self._engine.optimizer)
        self.module: nn.Module = self._engine.module
        # Frozen parameters in float32, by `id`, where the module has them in 16 bits and something averages them.
        self._exact: dict[int, Tensor] = {}

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a micro-batch and its named parts."""
        loss, parts = self._engine(batch)
        return loss, parts

    def train(self) -> None:
        """Put the module into training mode."""
        # Looked at first, since setting it visits every module: 8 ms of each step, with hundreds of them.
        if not all(module.training for module in (self._engine, self.module, *self.module.children())):
            self._engine.train()

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradients to the step's."""
        self._engine.backward(loss)

    def step(self) -> None:
        """Count a micro-batch; after the last one of a step, update the weights."""
        self._engine.step()

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next steps."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr

    @property
    def skipped(self) -> bool:
        """True if the last step was skipped because a gradient was NaN or infinite; the same on all ranks."""
        return bool(self._engine.optimizer.overflow)

    def grad_norm(self) -> float | None:
        """Return the last step's gradient norm before clipping, or None if DeepSpeed does not compute it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def scale_may_fall(self) -> bool:
        """Return whether fp16's loss scale is still above its lowest value, so that an overflow lowers it."""
        return scale_may_fall(self._engine.optimizer)

    def close(self) -> None:
        """Release hooks, threads and buffers."""
        self._engine.destroy()
        F.linear = self._linear
        # Else the next training, in bf16, would send its gradients in the weights' precision, as this one may have.
        # Earlier versions have no such module.
        with contextlib.suppress(ImportError):
            import deepspeed.runtime.torch_autocast as autocast

            autocast.TORCH_AUTOCAST_INITIALIZED = False

    def create_state(self, averages: bool) -> None:
        """Create the optimizer's state now instead of at its first step, so that a checkpoint can be loaded into it.

        Args:
            averages: whether to keep moving averages of the weights. They are stored beside AdamW's moments, so that
                DeepSpeed divides and offloads them in the same way.
        """
        # Fused AdamW needs the step count as a tensor on the weights' device; DeepSpeed's AdamW counts with an int.
        fused = isinstance(self._engine.basic_optimizer, torch.optim.AdamW)
        for master, state in self.states():
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device) if fused else 0
            for key in MOMENTS:
                state[key] = torch.zeros_like(master)
            if averages:
                state[AVERAGE] = master.detach().clone()
        # Stages 1 and 2 link each parameter to its state with this, by themselves only after the first step.
        if hasattr(self._engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def states(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yield the tensors that this rank's optimizer updates, each with its state."""
        outer = self._engine.optimizer
        inner = self._engine.basic_optimizer
        # Below stage 3.
        if not hasattr(outer, "fp32_partitioned_groups_flat"):
            for group in inner.param_groups:
                for master in group["params"]:
                    yield master, inner.state[master]
            return
        # Stage 3 can offload to NVMe. A group is read from there for its turn and written back, since the caller may
        # change it.
        for index, master in enumerate(outer.fp32_partitioned_groups_flat):
            on_disk = outer._swappable_optimizer_subgroup(index)
            if on_disk:
                outer._optimizer_states_and_gradient_swap_in(index)
            yield master, inner.state[master]
            if on_disk:
                outer._optimizer_states_and_gradient_swap_out(index)

    @property
    def keeps_averages(self) -> bool:
        """True if `create_state` made moving averages."""
        return any(AVERAGE in state for _, state in self.states())

    @torch.no_grad()
    def whole(self, parameter: Any, key: str | None = None) -> Tensor:
        """Return one tensor of a parameter's state, whole. All ranks must call this, since it may communicate."""
        if not parameter.requires_grad:
            # Whole on each rank: an average is seldom kept, and DeepSpeed divides no float32 copy of frozen weights.
            if (kept := self._exact.get(id(parameter))) is not None:
                return kept
            with self.gathered(parameter):
                copy: Tensor = parameter.detach().clone()
                return copy
        # `ds_id` marks parameters of stage 3, `_hp_mapping` those of stages 1 and 2.
        if hasattr(parameter, "ds_id"):
            tensor: Tensor = parameter._z3_optimizer.get_full_hp_param(parameter, key)
        elif hasattr(parameter, "_hp_mapping"):
            tensor = parameter.get_full_hp_param(key)
        else:
            master = self._masters().get(id(parameter), parameter)
            tensor = master.detach() if key is None else self._engine.basic_optimizer.state[master][key]
        return tensor

    @torch.no_grad()
    def put(self, parameter: Any, value: Tensor, key: str | None = None) -> None:
        """Set what `whole` returns, from the whole value."""
        if not parameter.requires_grad:
            if parameter.dtype != torch.float32:
                self._exact[id(parameter)] = value.float()
            return
        if hasattr(parameter, "ds_id"):
            # All ranks have parts of the same size, so the last one is padded.
            part = parameter.ds_tensor.numel()
            start = part * distributed.rank()
            padded = F.pad(value.flatten(), (0, part * distributed.world_size() - value.numel()))
            parameter._z3_optimizer.set_local_hp_param(padded[start : start + part], parameter, key)
        elif hasattr(parameter, "_hp_mapping"):
            parameter.set_full_hp_param(value, key)
        else:
            master = self._masters().get(id(parameter), parameter)
            (master if key is None else self._engine.basic_optimizer.state[master][key]).copy_(value)

    @torch.no_grad()
    def show(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Set the weights that the module computes with; separate master weights stay as they are."""
        with self.gathered(parameter, writer=0):
            parameter.data.copy_(value)

    def _masters(self) -> dict[int, Tensor]:
        """Return, for stage 0 in 16 bits, the float32 copy of each parameter by the parameter's `id`."""
        outer = self._engine.optimizer
        groups = zip(getattr(outer, "fp16_groups", ()), getattr(outer, "fp32_groups", ()), strict=True)
        return {id(low): high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}

    @contextlib.contextmanager
    def gathered(self, parameter: nn.Parameter, writer: int | None = None) -> Iterator[None]:
        """Within this context, a parameter is whole; at the end, changes by the rank ``writer``, if any, are kept."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=writer, enabled=hasattr(parameter, "ds_id")):
            yield

    def size(self, parameter: nn.Parameter) -> int:
        """Return how many numbers the whole parameter has."""
        return int(getattr(parameter, "ds_numel", parameter.numel()))

    def facts(self) -> dict[str, Any]:
        """Return the rest of the state, the same on all ranks: the number of updates, and fp16's loss scale."""
        scaler = self._scaler()
        return {
            "updates": max(int(state["step"]) for _, state in self.states()),
            "loss_scale": {name: getattr(scaler, name) for name in SCALE if hasattr(scaler, name)},
        }

    def set_facts(self, facts: dict[str, Any]) -> None:
        """Set what `facts` returned."""
        for _, state in self.states():
            if isinstance(state["step"], Tensor):
                state["step"].fill_(facts["updates"])
            else:
                state["step"] = facts["updates"]
        scaler = self._scaler()
        for name, value in facts["loss_scale"].items():
            if hasattr(scaler, name):
                setattr(scaler, name, value)

    def _scaler(self) -> Any:
        """Return the object with fp16's loss scale, or None; its name depends on DeepSpeed's optimizer class."""
        outer = self._engine.optimizer
        return getattr(outer, "loss_scaler", getattr(outer, "loss_scale_config", None))

    @torch.no_grad()
    def trained(self, averaged: bool) -> dict[int, nn.Parameter]:
        """Return whole parameters in float32, by the `id` of the module's own. All ranks must call this.

        The master weights or their averages: in 16 bits the module has only what is left of them after rounding.
        """
        whole = ((parameter, self.trained_value(parameter, averaged)) for parameter in self.module.parameters())
        return {id(parameter): nn.Parameter(value, parameter.requires_grad) for parameter, value in whole}

    def trained_value(self, parameter: nn.Parameter, averaged: bool) -> Tensor:
        """Return one whole parameter in float32, as `trained` does. All ranks must call this."""
        return self.whole(parameter, AVERAGE if averaged and parameter.requires_grad else None).float()


def scale_may_fall(optimizer: Any) -> bool:
    """Return whether one of DeepSpeed's fp16 optimizers can still lower its loss scale at an overflow."""
    for name, least in (("loss_scaler", "min_scale"), ("loss_scale_config", "min_loss_scale")):
        scaler = getattr(optimizer, name, None)
        if scaler is not None and getattr(scaler, least, None) is not None:
            return bool(scaler.cur_scale > getattr(scaler, least))
    return False
