"""``[train.trackers]``: where a training's measurements go besides ``log.jsonl``."""

from __future__ import annotations

from rearkit.options import setting, settings


@settings
class TrackersTable:
    """``[train.trackers]``: TensorBoard, and Weights & Biases where it is asked for."""

    tensorboard: bool = setting("write TensorBoard's files", default=True, cosmetic=True)
    wandb: bool = setting("log to Weights & Biases; needs rearkit[wandb]", default=False, cosmetic=True)
    wandb_project: str = setting("its project", default="rearkit", min_len=1, cosmetic=True)
    wandb_entity: str | None = setting("its user or team; left out: the account's own", default=None, cosmetic=True)
    wandb_offline: bool = setting(
        "write its files here, for `wandb sync`; WANDB_MODE=offline does the same", default=False, cosmetic=True
    )
