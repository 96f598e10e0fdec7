"""``[train]``: optimization of the backbone and the regularizers' heads, and how the work is divided over machines."""

from __future__ import annotations

from typing import Any

import attrs

from rearkit.recipe.settings import setting, settings


@settings
class GuardsTable:
    """``[train.guards]``: what training tolerates before it stops."""

    max_skipped_steps: int = setting(
        "steps skipped for a NaN or infinite loss or gradient, since the start or the resume; one more stops training",
        default=20,
        ge=0,
        cosmetic=True,
    )
    spike_factor: float = setting(
        "report and count gradient norms above this multiple of the median of the last 100; 0: never",
        default=10.0,
        ge=0,
        cosmetic=True,
    )
    data_timeout: float = setting(
        "seconds that a step waits for its samples before training stops with the name of the shard being read",
        default=300.0,
        gt=0,
        cosmetic=True,
    )


@settings
class TrackersTable:
    """``[train.trackers]``: TensorBoard, and optionally Weights & Biases."""

    tensorboard: bool = setting("write TensorBoard's files", default=True, cosmetic=True)
    wandb: bool = setting("log to Weights & Biases; needs rearkit[wandb]", default=False, cosmetic=True)
    wandb_project: str = setting("Weights & Biases project", default="rearkit", min_len=1, cosmetic=True)
    wandb_entity: str | None = setting(
        "Weights & Biases user or team; left out: the account's own", default=None, cosmetic=True
    )
    wandb_offline: bool = setting(
        "write Weights & Biases' files here, for `wandb sync`; WANDB_MODE=offline does the same",
        default=False,
        cosmetic=True,
    )


@settings
class TrainTable:
    """``[train]``: optimization of the backbone and the regularizers' heads."""

    steps: int = setting("optimizer steps; 0 to use the backbone's weights as they are", ge=0)
    seed: int | None = setting(
        "seed of initial weights, order, noise and dropout; left out: the recipe's", default=None, ge=0, lt=2**31
    )
    global_batch: int = setting("samples a step, over all ranks", ge=1)
    micro_batch: int | None = setting(
        "samples a rank computes at once; left out: as many of its share as a GPU's memory holds, or on a CPU all",
        default=None,
        ge=1,
        cosmetic=True,
    )
    lr: float = setting("peak learning rate", default=4e-4, gt=0)
    end_lr: float = setting("learning rate that the cosine ends at", default=1e-5, ge=0)
    warmup_steps: int = setting("steps of linear warm-up", default=0, ge=0)
    betas: tuple[float, float] = setting("AdamW betas", default=(0.9, 0.96), ge=0, lt=1)
    weight_decay: float = setting(
        "AdamW weight decay; not on norms, biases, embeddings and position tables", default=0.03, ge=0
    )
    clip: float = setting("gradient norm to clip at; 0 for no clipping", default=1.0, ge=0)
    label_dropout: float = setting("share of samples trained without their label", default=0.1, ge=0, lt=1)
    precision: str = setting(
        "arithmetic of a step; bf16-autocast: float32 weights, products in bf16, as in the published code",
        default="fp32",
        choices=("fp32", "bf16", "bf16-autocast", "fp16"),
    )
    zero_stage: int = setting("DeepSpeed ZeRO stage", default=1, choices=(0, 1, 2, 3), cosmetic=True)
    offload_optimizer: str = setting(
        "where the optimizer's state is kept: by the weights, in main memory (ZeRO 1 up) or on an NVMe disk (ZeRO 3)",
        default="none",
        choices=("none", "cpu", "nvme"),
        cosmetic=True,
    )
    offload_parameters: str = setting(
        "where the parameters are kept while they are not needed (ZeRO 3)",
        default="none",
        choices=("none", "cpu", "nvme"),
        cosmetic=True,
    )
    offload_path: str | None = setting("folder on the NVMe disk", default=None, cosmetic=True)
    activation_checkpointing: bool = setting(
        "compute the blocks' activations again in the backward pass instead of keeping them",
        default=False,
        cosmetic=True,
    )
    compile: bool = setting("compile the blocks with torch.compile", default=False, cosmetic=True)
    ema_decay: float = setting(
        "decay of a moving average of the weights, which is validated, sampled from and exported; 0 for none",
        default=0.0,
        ge=0,
        lt=1,
    )
    log_every: int = setting("steps between log lines", default=10, ge=1, cosmetic=True)
    validate_every: int = setting(
        "steps between cross-entropies on the held-out tokens; 0: at the end only", default=0, ge=0, cosmetic=True
    )
    checkpoint_every: int = setting("steps between checkpoints", default=500, ge=1, cosmetic=True)
    keep_checkpoints: int = setting("latest checkpoints kept", default=2, ge=1, cosmetic=True)
    keep_every: int = setting(
        "also keep the checkpoints at multiples of this many steps; 0 for none", default=0, ge=0, cosmetic=True
    )
    pictures: int = setting(
        "images drawn at each checkpoint, for the report; 0 for none", default=8, ge=0, cosmetic=True, since="0.2.0"
    )
    trackers: TrackersTable = setting("where measurements go", default=TrackersTable(), cosmetic=True)
    guards: GuardsTable = setting("what training tolerates before it stops", default=GuardsTable())
    deepspeed: dict[str, Any] = setting(
        "keys of DeepSpeed's configuration that have no setting here, merged into ours", default=attrs.Factory(dict)
    )

    def __attrs_post_init__(self) -> None:
        # With steps = 0 the backbone is not trained, so that no schedule has to fit.
        if self.steps and self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})")
        self._check_offloading()
        if self.end_lr > self.lr:
            raise ValueError(f"end_lr ({self.end_lr}) must not exceed lr ({self.lr})")
        # Otherwise some of the steps to keep would have no checkpoint.
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every ({self.keep_every}) must be a multiple of checkpoint_every ({self.checkpoint_every})"
            )
        # The compiler breaks its graphs at each gathering of weights, and then gives up.
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile does not work with zero_stage 3: choose 0, 1 or 2, or compile = false")
        # Whether ranks times micro batches divide the global batch too is only known when training starts.
        if self.micro_batch is not None and self.global_batch % self.micro_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide global_batch ({self.global_batch})")

    def _check_offloading(self) -> None:
        # DeepSpeed's rules, checked here so that the error names the recipe's keys.
        nvme = "nvme" in (self.offload_optimizer, self.offload_parameters)
        if self.offload_optimizer != "none" and self.zero_stage < 1:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3")
        if (self.offload_parameters != "none" or nvme) and self.zero_stage < 3:
            raise ValueError("offload_parameters, and offloading to nvme, need zero_stage 3")
        if nvme != (self.offload_path is not None):
            raise ValueError("offload_path is the folder for offloading to nvme: give both, or neither")
