"""Trackers: where measurements go for people to look at, TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import threading
import uuid
from pathlib import Path
from typing import Any, Protocol

from rearkit.errors import RearkitError, first_line
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.recipe.train_table import TrackersTable
from rearkit.system.files import storage_errors, write_text

TENSORBOARD = "tensorboard"
WANDB_RUN = "wandb-run.txt"


class Tracker(Protocol):
    """Takes measurements as they are made."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Take named numbers at a step."""
        ...

    def close(self) -> None:
        """Flush; what cannot be written any more is given up."""
        ...


def check_trackers(table: TrackersTable) -> None:
    """See that what a recipe asks for is installed.

    Raises:
        RearkitError: it is not; the message has the command that installs it.
    """
    if table.wandb and importlib.util.find_spec("wandb") is None:
        raise RearkitError(
            "[train.trackers] wandb = true, but wandb is not installed; run: pip install 'rearkit[wandb]', "
            "or leave the key out"
        )


def open_trackers(recipe: Recipe, folder: Path, step: int) -> list[Tracker]:
    """Start the trackers that a recipe asks for.

    Args:
        recipe: whose ``[train.trackers]`` counts.
        folder: where their files go.
        step: the step that the run resumes from; 0 for a fresh one.

    Raises:
        RearkitError: one is not installed, or cannot start.
    """
    table = recipe.train.trackers
    check_trackers(table)
    trackers: list[Tracker] = []
    if table.tensorboard:
        trackers.append(TensorBoard(folder, step))
    if table.wandb:
        trackers.append(WeightsAndBiases(recipe, folder, step))
    return trackers


class TensorBoard:
    """TensorBoard's files in ``tensorboard/``; a resumed run takes the place of what it repeats."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.place = folder / TENSORBOARD
        self._excepthook, threading.excepthook = threading.excepthook, self._note_thread_error
        with storage_errors(self.place):
            self._writer = SummaryWriter(str(self.place), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """See `Tracker`.

        Raises:
            StorageError: the disk is full.
        """
        with storage_errors(self.place):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        with contextlib.suppress(OSError):
            self._writer.close()
        threading.excepthook = self._excepthook

    def _note_thread_error(self, arguments: threading.ExceptHookArgs) -> None:
        """Pass over a failed write of TensorBoard's thread: the next call here raises it again, and tells it."""
        ours = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(arguments.exc_value, OSError)):
            self._excepthook(arguments)


class WeightsAndBiases:
    """A run of Weights & Biases; a resumed training goes on with the same one.

    Its id is kept in ``wandb-run.txt``. Steps that a resumed training repeats are passed over by W&B, which keeps the
    first value. Without network: ``wandb_offline``, or the environment's ``WANDB_MODE``, which W&B reads itself.
    """

    def __init__(self, recipe: Recipe, folder: Path, step: int) -> None:
        import wandb

        table, note = recipe.train.trackers, folder / WANDB_RUN
        if not (step and note.is_file()):
            write_text(note, uuid.uuid4().hex + "\n")
        options: dict[str, Any] = {"mode": "offline"} if table.wandb_offline else {}
        try:
            self._run = wandb.init(
                project=table.wandb_project,
                entity=table.wandb_entity,
                name=recipe.name,
                id=note.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(folder),
                config=recipe_to_dict(recipe),
                **options,
            )
        except Exception as error:  # not logged in, no network, no such project: each an error class of its own
            raise RearkitError(
                f"[train.trackers] wandb: it could not start ({first_line(error)}); run `wandb login`, "
                "or set wandb_offline = true"
            ) from error

    def write(self, step: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()
