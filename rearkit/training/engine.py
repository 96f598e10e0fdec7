"""The recipe's ``[train]`` table as a DeepSpeed engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rearkit.errors import RecipeError
from rearkit.model import Model
from rearkit.recipe.train_table import TrainTable
from rearkit.system import distributed
from rearkit.training.batches import Batch
from rearkit.training.deepspeed_config import deepspeed_config, import_deepspeed, is_unwrapped, shortened
from rearkit.training.guards import GuardedAdamW
from rearkit.training.schedule import parameter_groups


class TrainModule(nn.Module):
    """Backbone and objective as the one module that DeepSpeed wraps."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.objective = model.objective
        self.prefix_length = model.backbone.prefix_length

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise and its named parts."""
        logits, hidden = self.backbone(batch.context_BN, batch.classes_B, self.objective.layers)
        loss = self.objective(logits, hidden, batch.tokens_BN, batch.replaced_BN, self.prefix_length)
        return loss.total, loss.parts


def start_engine(module: TrainModule, train: TrainTable, device: torch.device) -> Any:
    """Join the other ranks and wrap the module.

    Raises:
        RecipeError: DeepSpeed refuses its configuration.
    """
    deepspeed = import_deepspeed(device)
    distributed.start(device)
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)
    groups = parameter_groups(module, train.weight_decay)
    optimizer: torch.optim.Optimizer
    if is_unwrapped(train):
        optimizer = GuardedAdamW(groups, train.clip, lr=train.lr, betas=train.betas)
    elif train.offload_optimizer != "none" and device.type == "cuda":
        optimizer = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, lr=train.lr, betas=train.betas)
    else:
        optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=train.betas, fused=True)
    try:
        engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=deepspeed_config(train, distributed.world_size())
        )
    except (AssertionError, ValueError, TypeError, deepspeed.runtime.config.DeepSpeedConfigError) as error:
        key = "[train.deepspeed]" if train.deepspeed else f'[train] precision = "{train.precision}"'
        if not train.deepspeed and train.precision == "fp32":
            raise
        raise RecipeError([f"{key}: DeepSpeed refuses it: {shortened(error)}"]) from error
    if (scaler := getattr(engine.optimizer, "loss_scaler", None)) is not None:
        scaler.raise_error_at_min_scale = False  # `StepGuard` counts what is skipped then, and names the shards
    return engine


def scale_may_fall(optimizer: Any) -> bool:
    """Tell whether DeepSpeed lowers a loss scale when gradients overflow, and has not reached the lowest (fp16)."""
    for name, least in (("loss_scaler", "min_scale"), ("loss_scale_config", "min_loss_scale")):
        scaler = getattr(optimizer, name, None)
        if scaler is not None and getattr(scaler, least, None) is not None:
            return bool(scaler.cur_scale > getattr(scaler, least))
    return False


def whole_parameters(module: nn.Module) -> dict[int, nn.Parameter]:
    """Gather, on all ranks, the parameters that ZeRO stage 3 has divided, each by the identity of its part."""
    import deepspeed

    whole: dict[int, nn.Parameter] = {}
    for parameter in module.parameters():
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                whole[id(parameter)] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    return whole


def put_back(module: nn.Module, whole: dict[int, nn.Parameter]) -> None:
    """Make an ordinary module of one that was trained, with the parameters from `whole_parameters`."""
    for part in module.modules() if whole else ():
        part._parameters = {
            name: parameter if parameter is None else whole.get(id(parameter), parameter)
            for name, parameter in part._parameters.items()
        }
