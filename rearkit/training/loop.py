"""The training loop: from a model and tokens to trained weights, resumable at any step."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from rearkit.contracts import num_parameters
from rearkit.data.token_shards import TokenData, spread
from rearkit.data.training_data import Samples, TrainingData, shards_of
from rearkit.errors import Interrupted, Preempted, RearkitError
from rearkit.model import Model
from rearkit.system import distributed
from rearkit.system.console import progress_bar, say
from rearkit.system.devices import resolve_device, seed_everything
from rearkit.system.memory import freed_memory_kept
from rearkit.system.signals import StopRequest
from rearkit.training import state
from rearkit.training.batches import BatchSource
from rearkit.training.blocks import prepared_blocks
from rearkit.training.checkpoints import Checkpoints
from rearkit.training.deepspeed_config import batch_layout, check_deepspeed_table
from rearkit.training.engine import TrainModule, put_back, scale_may_fall, start_engine, whole_parameters
from rearkit.training.guards import StepGuard, poisoned
from rearkit.training.logs import TrainLog
from rearkit.training.order import order_of
from rearkit.training.prefetch import Feed
from rearkit.training.schedule import learning_rate
from rearkit.training.trackers import open_trackers
from rearkit.training.validation import HELD_OUT_ACCURACY, HELD_OUT_LOSS, validate


@attrs.frozen
class TrainResult:
    """What training did.

    Attributes:
        steps: optimizer steps, in all.
        seconds: wall time of this call.
        parameters: of the backbone, which sampling needs.
        head_parameters: of the regularizers' training-only heads.
        last: the last logged loss and its parts, and the validation after the last step.
        held_out_cross_entropy: nats per token on held-out images, or None.
        held_out_accuracy: share of held-out tokens predicted, or None.
    """

    steps: int
    seconds: float
    parameters: int
    head_parameters: int
    last: dict[str, float]
    held_out_cross_entropy: float | None
    held_out_accuracy: float | None

    def summary(self) -> str:
        """Say in a line what came of it."""
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
    """Train a model's backbone, in place, as its recipe's ``[train]`` table says.

    Args:
        model: from `rearkit.build`.
        data: training tokens, or images that are tokenized as they are needed.
        held_out: tokens to validate on.
        folder: where checkpoints and logs go, and where an earlier, unfinished call resumes from; None for neither.

    Raises:
        RearkitError: the tokens don't fit the model, cannot be read, or don't come in time.
        DivergedError: too many losses were NaN or infinite.
        Interrupted: Ctrl-C or SIGTERM came; with a folder, a checkpoint was saved first.
    """
    recipe, table = model.recipe, model.recipe.train
    _check_tokens(model, data)
    device = distributed.local_device(resolve_device(recipe.device))
    if table.steps == 0:
        model.backbone.to(device).eval()
        return _result(model, 0.0, {} if held_out is None else validate(model, held_out, device))
    check_deepspeed_table(table, device)
    distributed.start(device)
    checkpoints = None
    if folder is not None:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", table.keep_checkpoints, table.keep_every)
    found = None if checkpoints is None else checkpoints.latest()
    module = TrainModule(model).to(device)
    if found is not None:
        state.read_weights(module, found.folder)
    engine = start_engine(module, table, device)
    state.begin(engine, averages=table.ema_decay > 0)
    step = 0
    if found is not None:
        state.restore(engine, found.folder, found.facts)
        step = found.step
        say(f"train: going on from step {step} of {table.steps}")
    rank, world = distributed.rank(), distributed.world_size()
    micro, _ = batch_layout(table, world)
    source = BatchSource(
        data=data,
        order=order_of(data, recipe.train_seed),
        noise=model.noise,
        codebook_size=model.space.codebook_size,
        num_classes=model.space.num_classes,
        label_dropout=table.label_dropout,
        steps=table.steps,
        global_batch=table.global_batch,
        seed=recipe.train_seed,
    )
    guard = StepGuard(table.guards, lambda: scale_may_fall(engine.optimizer), lambda indices: shards_of(data, indices))
    feed = Feed(source, range(step, table.steps), rank, world, table.guards.data_timeout, data.workers)
    log = None
    if folder is not None and rank == 0:
        log = TrainLog(Path(folder), step, open_trackers(recipe, Path(folder), step))
    started, last = time.monotonic(), {} if log is None else log.last
    busy = 0.0  # seconds in steps, without validation and checkpoints
    try:
        kept = freed_memory_kept() if device.type == "cpu" else contextlib.nullcontext()
        with StopRequest() as stop, feed, kept, prepared_blocks(model), progress_bar("train", table.steps, step) as bar:
            while step < table.steps:
                began = time.monotonic()
                samples, lr = feed.next(step), learning_rate(table, step)
                values = _train_step(engine, source, step, samples, lr, rank, world, micro, device, guard)
                step += 1
                if table.ema_decay and not engine.optimizer.overflow:  # a skipped step changes nothing
                    state.update_average(engine, table.ema_decay, step)
                busy += time.monotonic() - began
                bar.advance(1, f"loss {values['loss'].item():.3f}")
                final = step == table.steps
                validates = final or (table.validate_every and step % table.validate_every == 0)
                if validates or step % table.log_every == 0:
                    means = distributed.mean_over_ranks({k: float(v) for k, v in values.items()}, device)
                    last = {name: value for name, value in means.items() if math.isfinite(value)} | guard.counts()
                    last["samples_per_second"] = (step - bar.first) * table.global_batch / busy
                    if held_out is not None and validates:
                        with state.averaged(engine) if table.ema_decay else contextlib.nullcontext():
                            last |= validate(model, held_out, device)
                    if log is not None:
                        log.write(step, last)
                stopped = distributed.most_over_ranks(stop.signal or 0, device)  # all save, or none
                if checkpoints is not None and (final or step % table.checkpoint_every == 0 or stopped):
                    checkpoints.save(step, lambda place: state.write(engine, place))
                if stopped:
                    raise _interruption(stopped, step, table.steps, checkpoints is not None)
        if table.ema_decay:
            state.adopt_average(engine)
        whole = whole_parameters(module)
    finally:
        if log is not None:
            log.close()
        engine.destroy()
    put_back(module, whole)
    model.backbone.eval()
    if held_out is not None and HELD_OUT_LOSS not in last:  # the line of the last step was lost in a crash
        last = last | validate(model, held_out, device)
    return _result(model, time.monotonic() - started, last)


def _result(model: Model, seconds: float, last: dict[str, float]) -> TrainResult:
    return TrainResult(
        steps=model.recipe.train.steps,
        seconds=seconds,
        parameters=num_parameters(model.backbone),
        head_parameters=num_parameters(model.objective),
        last=last,
        held_out_cross_entropy=last.get(HELD_OUT_LOSS),
        held_out_accuracy=last.get(HELD_OUT_ACCURACY),
    )


def _train_step(
    engine: Any,
    source: BatchSource,
    step: int,
    samples: Samples,
    lr: float,
    rank: int,
    world: int,
    micro: int,
    device: torch.device,
    guard: StepGuard,
) -> dict[str, Any]:
    """One optimizer step; returns this rank's means over its micro-batches."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    engine.train()
    totals: dict[str, Any] = {}
    count = source.global_batch // world // micro
    share, losses = source.batch(step, rank, world, samples, device), []
    for index, batch in enumerate(share.pieces(micro)):
        seed_everything(source.seed, "dropout", step, rank, index)
        loss, parts = engine(batch)
        engine.backward(poisoned(loss))
        engine.step()
        losses.append(loss.detach())
        for name, value in {"loss": losses[-1], **parts}.items():
            totals[name] = totals.get(name, 0) + value / count
    norm = engine.get_global_grad_norm()
    norm = None if norm is None else float(norm)
    guard.after_step(step + 1, engine.optimizer.overflow, norm, losses, np.split(samples.indices, count))
    values = {**totals, "noise_level": share.noise_level, "lr": lr}
    return values if norm is None else values | {"grad_norm": norm}


def _check_tokens(model: Model, data: TrainingData) -> None:
    space = model.space
    if data.num_tokens != space.num_tokens:
        raise RearkitError(f"the token shards have {data.num_tokens} tokens an image, the tokenizer {space.num_tokens}")
    if not isinstance(data, TokenData):
        return  # made by this very tokenizer
    tokens, _ = data.take(spread(len(data), 1000))
    if int(tokens.max()) >= space.codebook_size or data.num_classes > space.num_classes:
        raise RearkitError(
            f"the token shards hold token {int(tokens.max())} and class {data.num_classes - 1}, but the recipe has "
            f"{space.codebook_size} codes and {space.num_classes} classes: they come from another tokenizer or dataset"
        )


def _interruption(number: int, step: int, steps: int, saved: bool) -> Interrupted:
    where = "saved; run the same command to go on" if saved else "nothing was saved, since no folder was given"
    kind = Preempted if number == signal.SIGTERM else Interrupted
    return kind(f"train: stopped at step {step} of {steps}, {where}")
