"""The training loop: from a model and tokens to trained weights, resumable at any step."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import attrs

from rearkit.contracts import num_parameters
from rearkit.data.token_shards import TokenData
from rearkit.data.training_data import TrainingData
from rearkit.errors import RearkitError, interruption
from rearkit.model import Model
from rearkit.system import distributed
from rearkit.system.console import progress_bar
from rearkit.system.devices import resolve_device
from rearkit.system.signals import StopRequest
from rearkit.training.deepspeed_check import check_deepspeed_table
from rearkit.training.trainer import Trainer
from rearkit.training.validation import HELD_OUT_ACCURACY, HELD_OUT_LOSS, validate


@attrs.frozen
class TrainResult:
    """What training did.

    Attributes:
        steps: optimizer steps, those of earlier calls included.
        seconds: wall time of this call.
        parameters: number of the backbone's parameters, which sampling needs.
        head_parameters: number of trained parameters of the regularizers' training-only heads.
        last: the last logged loss and its parts, and the validation after the last step.
        held_out_cross_entropy: nats per token on held-out images, or None.
        held_out_accuracy: share of held-out tokens predicted correctly, in [0, 1], or None.
    """

    steps: int
    seconds: float
    parameters: int
    head_parameters: int
    last: dict[str, float]
    held_out_cross_entropy: float | None
    held_out_accuracy: float | None

    def summary(self) -> str:
        """Return the result in one line."""
        parts = [f"{self.steps} steps"]
        if "loss" in self.last:
            parts.append(f"loss {self.last['loss']:.3f}")
        if self.held_out_cross_entropy is not None and self.held_out_accuracy is not None:
            parts.append(f"held-out cross-entropy {self.held_out_cross_entropy:.3f} nats a token")
            parts.append(f"held-out accuracy {self.held_out_accuracy:.1%}")
        return ", ".join(parts)


def train(
    model: Model, data: TrainingData, held_out: TokenData | None = None, folder: str | Path | None = None
) -> TrainResult:
    """Train a model's backbone in place, as its recipe's ``[train]`` table says.

    Args:
        model: from `rearkit.build`.
        data: training tokens, or images that are tokenized as they are needed.
        held_out: tokens to validate on, or None.
        folder: folder for checkpoints and logs; an unfinished earlier call is resumed from it. None for neither.

    Raises:
        RearkitError: the tokens don't fit the model, cannot be read, or don't come in time.
        DivergedError: too many losses were NaN or infinite.
        Interrupted: the process got Ctrl-C or SIGTERM; with a folder, a checkpoint was saved first.
    """
    check_deepspeed_table(model.recipe.train, resolve_device(model.recipe.device))
    # In a run, the tokens stage has done so.
    if isinstance(data, TokenData):
        data.check_codes(model.space.codebook_size)
    if held_out is not None:
        held_out.check_codes(model.space.codebook_size)
    return train_checked(model, data, held_out, folder)


def train_checked(
    model: Model, data: TrainingData, held_out: TokenData | None, folder: str | Path | None, owner: str = ""
) -> TrainResult:
    """Train as `train` does, by a recipe that was checked when its run began; checkpoints are the ``owner``'s."""
    steps = model.recipe.train.steps
    device = distributed.local_device(resolve_device(model.recipe.device))
    _check_tokens(model, data)
    if held_out is not None:
        _check_tokens(model, held_out, "held-out ")
    # Published weights can be sampled without any training; there is no engine to build then.
    if steps == 0:
        model.backbone.to(device).eval()
        return _result(model, 0.0, {} if held_out is None else validate(model, held_out, device))
    trainer = Trainer(model, data, held_out, None if folder is None else Path(folder), owner)
    started = time.monotonic()
    with trainer, StopRequest() as stop, progress_bar("train", steps, trainer.done) as bar:
        while not trainer.finished:
            stop.waiting = True
            samples = trainer.next_samples()
            stop.waiting = False
            values = trainer.step(samples)
            # A function, since reading the loss of each step would make a GPU wait.
            bar.advance(1, functools.partial(_loss_text, values))
            # The last validation may fail, as where a GPU is full: all that was trained is saved before.
            if trainer.finished:
                trainer.save(anyway=False)
            trainer.report(values)
            # A signal may reach only one rank, or two ranks at different steps: all must stop and save at the same one.
            stopped = distributed.most_over_ranks(stop.signal or 0)
            if not trainer.finished:
                trainer.save(anyway=stopped > 0)
            if stopped:
                raise interruption(stopped, f"train: stopped at step {trainer.done} of {steps}", folder is not None)
    # The first rank's, which alone has the log of an earlier call: all ranks validate, or none does.
    last = distributed.from_main(lambda: trainer.last)
    # The call that took the last step may have ended in this validation.
    if held_out is not None and HELD_OUT_LOSS not in last:
        last = last | validate(model, held_out, device)
    return _result(model, time.monotonic() - started, last)


def _loss_text(values: dict[str, Any]) -> str:
    return f"loss {float(values['loss']):.3f}"


def _result(model: Model, seconds: float, last: dict[str, float]) -> TrainResult:
    return TrainResult(
        steps=model.recipe.train.steps,
        seconds=seconds,
        parameters=num_parameters(model.backbone),
        head_parameters=num_parameters(model.objective, trained=True),
        last=last,
        held_out_cross_entropy=last.get(HELD_OUT_LOSS),
        held_out_accuracy=last.get(HELD_OUT_ACCURACY),
    )


def _check_tokens(model: Model, data: TrainingData, split: str = "") -> None:
    space = model.space
    if data.num_tokens != space.num_tokens:
        raise RearkitError(
            f"the {split}token shards have {data.num_tokens} tokens an image, the tokenizer {space.num_tokens}"
        )
    # What is made on the fly has its classes checked as it is read. All codes have been looked at before.
    if isinstance(data, TokenData) and data.num_classes > space.num_classes:
        raise RearkitError(
            f"the {split}token shards hold class {data.num_classes - 1}, but the recipe has {space.num_classes} "
            "classes: they come from another dataset"
        )
