"""Trackers, which show measurements to people: TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import re
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
WANDB_ID = re.compile(r"[0-9a-f]{32}\n")


class Tracker(Protocol):
    """Receives measurements during training."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record named numbers at a step."""
        ...

    def close(self) -> None:
        """Flush and close; numbers that cannot be written any more are dropped."""
        ...


def check_trackers(table: TrackersTable) -> None:
    """Check that the trackers of a recipe are installed.

    Raises:
        RearkitError: one is not; the message has the command that installs it.
    """
    if table.wandb and importlib.util.find_spec("wandb") is None:
        raise RearkitError(
            "[train.trackers] wandb = true, but wandb is not installed; run: pip install 'rearkit[wandb]', "
            "or leave the key out"
        )


def open_trackers(recipe: Recipe, folder: Path, step: int) -> list[Tracker]:
    """Start the trackers of a recipe.

    Args:
        recipe: the recipe, with ``[train.trackers]``.
        folder: folder for their files.
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
    """TensorBoard's files in ``tensorboard/``; in a resumed run, repeated steps replace the earlier ones."""

    def __init__(self, folder: Path, step: int) -> None:
        # Here, so that runs without it don't wait for its import.
        from torch.utils.tensorboard import SummaryWriter

        self.place = folder / TENSORBOARD
        # TensorBoard writes in a thread, whose failure would be printed as a traceback.
        self._excepthook, threading.excepthook = threading.excepthook, self._note_thread_error
        with storage_errors(self.place):
            # The step that the run resumes from was logged already, so steps are repeated from the next one on.
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
        """Skip a failed write in TensorBoard's thread: it is raised again, and reported, by the next call here."""
        ours = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (ours and isinstance(arguments.exc_value, OSError)):
            self._excepthook(arguments)


class WeightsAndBiases:
    """A run of Weights & Biases; a resumed training continues the same one.

    Its id is kept in ``wandb-run.txt``. Of steps that a resumed training repeats, W&B keeps the first values. Without a
    network, set ``wandb_offline``, or the environment variable ``WANDB_MODE``, which W&B reads itself.
    """

    def __init__(self, recipe: Recipe, folder: Path, step: int) -> None:
        import wandb

        table = recipe.train.trackers
        note = folder / WANDB_RUN
        # Written before the run starts, so that a run that is killed at once is found again.
        if not (step and note.is_file() and WANDB_ID.fullmatch(note.read_text(encoding="utf-8", errors="replace"))):
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
        except Exception as error:
            # Not logged in, no network, no such project: each has an exception class of its own.
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
