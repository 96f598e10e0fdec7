"""The trainer: the parts of a training run, and its step."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from rearkit.data.token_shards import TokenData
from rearkit.data.training_data import TrainingData, shards_of
from rearkit.errors import RearkitError
from rearkit.model import Model
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import resolve_device, seed_everything
from rearkit.system.memory import freed_memory_kept
from rearkit.training import state
from rearkit.training.batches import BatchSource, Ready
from rearkit.training.blocks import prepared_blocks
from rearkit.training.checkpoints import CHECKPOINTS, Checkpoint, Checkpoints
from rearkit.training.engine import Engine
from rearkit.training.guards import StepGuard, poisoned
from rearkit.training.logs import TrainLog
from rearkit.training.order import order_of
from rearkit.training.pictures import Pictures
from rearkit.training.prefetch import Feed
from rearkit.training.schedule import learning_rate
from rearkit.training.teachers import Taken
from rearkit.training.trackers import open_trackers
from rearkit.training.train_module import TrainModule
from rearkit.training.unwrapped import put_back, tables_of
from rearkit.training.validation import HELD_OUT, validate


class Trainer:
    """A training run. Use it as a context, and call `step`, `report` and `save` inside it for each step.

    Args:
        model: the model, trained in place.
        data: the training data.
        held_out: tokens to validate on, or None.
        folder: folder for checkpoints and logs; an earlier run is resumed from it. None for neither.
        owner: of the checkpoints; see `Checkpoints`.

    Attributes:
        table: the recipe's ``[train]``.
        engine: steps the optimizer.
        source: makes the batches.
        feed: reads samples ahead.
        guard: watches losses and gradient norms.
        checkpoints: None without a folder.
        log: None without a folder, and on all ranks except the first.
        done: steps taken, those of the earlier run included.
        last: the numbers that were logged last.
    """

    def __init__(
        self, model: Model, data: TrainingData, held_out: TokenData | None, folder: Path | None, owner: str = ""
    ) -> None:
        recipe = model.recipe
        self.model = model
        self.held_out = held_out
        self.table = recipe.train
        self.device = distributed.local_device(resolve_device(recipe.device))
        distributed.start(self.device)
        self.rank = distributed.rank()
        self.world = distributed.world_size()
        self.checkpoints: Checkpoints | None = None
        if folder is not None:
            keep = self.table.keep_checkpoints, self.table.keep_every
            self.checkpoints = Checkpoints(folder / CHECKPOINTS, *keep, owner)
        # Before anything is built, since the order of what follows depends on whether there is a checkpoint.
        found = None if self.checkpoints is None else self.checkpoints.latest()
        self.done = 0 if found is None else found.step
        if self.done > self.table.steps:
            raise RearkitError(
                f"{folder}: has a checkpoint of step {self.done}, beyond [train] steps = {self.table.steps}; "
                "choose another folder"
            )
        self._first = self.done
        self.engine = self._resumed_engine(found)
        self.source = BatchSource(
            data=data,
            order=order_of(data, recipe.train_seed),
            noise=model.noise,
            codebook_size=model.space.codebook_size,
            num_classes=model.space.num_classes,
            label_dropout=self.table.label_dropout,
            steps=self.table.steps,
            global_batch=self.table.global_batch,
            seed=recipe.train_seed,
            keeps_images="images" in model.objective.reads,
            pins=self.device.type == "cuda",
        )
        guards = self.table.guards
        self.guard = StepGuard(guards, self.engine.scale_may_fall, lambda indices: shards_of(data, indices))
        steps = range(self.done, self.table.steps)
        self.feed = Feed(self.source, steps, self.rank, self.world, guards.data_timeout, data.workers)
        self.log: TrainLog | None = None
        self.pictures: Pictures | None = None
        # Values are averaged over the ranks before they are logged, so one log has them all.
        if folder is not None and self.rank == 0:
            self.log = TrainLog(folder, self.done, open_trackers(recipe, folder, self.done))
            self.pictures = Pictures(model, folder, self.table.pictures)
        self.last: dict[str, float] = {} if self.log is None else self.log.last
        # The last step is saved before it is logged, and may have got no further; an earlier validation does not count.
        if self.log is not None and self.log.last_step < self.done:
            self.last = {name: value for name, value in self.last.items() if not name.startswith(HELD_OUT)}
        # Seconds spent in steps; validation and checkpoints would make the reported speed depend on their intervals.
        self._busy = 0.0
        self._began = time.monotonic()
        self._open = contextlib.ExitStack()

    def _resumed_engine(self, found: Checkpoint | None) -> Engine:
        """Wrap the model in an engine, and load a checkpoint into it, if one was found."""
        module = TrainModule(self.model).to(self.device)
        # Weights are loaded before DeepSpeed divides them, the optimizer's state when it exists, which is after.
        if found is not None:
            state.read_weights(module, found.folder)
        self._tables = tables_of(module)
        engine = Engine(module, self.table, self.device)
        engine.create_state(averages=self.table.ema_decay > 0)
        if found is not None:
            state.restore(engine, found.folder, found.facts)
            say(f"train: going on from step {found.step} of {self.table.steps}")
        return engine

    def __enter__(self) -> Trainer:
        self._open.enter_context(self.feed)
        # A GPU's memory is kept by torch's own allocator.
        if self.device.type == "cpu":
            self._open.enter_context(freed_memory_kept())
        self._open.enter_context(prepared_blocks(self.model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trained = None
        try:
            self._open.__exit__(kind, error, trace)
            # Gathering needs all ranks: after an error, the others may not come here, and this one would wait forever.
            # Before the engine is closed, since only it can gather what the ranks have divided.
            if kind is None:
                trained = self.engine.trained(averaged=self.table.ema_decay > 0)
        finally:
            if self.log is not None:
                self.log.close()
            module = self.engine.module
            self.engine.close()
        if trained is not None:
            put_back(module, trained, self._tables)
            self.model.backbone.eval()

    @property
    def finished(self) -> bool:
        """True if all steps are taken."""
        return self.done == self.table.steps

    def next_samples(self) -> Ready:
        """Return this rank's samples of the next step, which were read ahead."""
        # Waiting for data is part of a step's time.
        self._began = time.monotonic()
        return self.feed.next(self.done)

    def step(self, ready: Ready) -> dict[str, Any]:
        """Take an optimizer step, or skip it if a gradient is NaN or infinite.

        Args:
            ready: this rank's share of the global batch, from `next_samples`.

        Returns:
            the loss and its parts, averaged over this rank's micro-batches; the noise level, the learning rate, and the
            gradient norm if it is known. Tensors may still be on the device.

        Raises:
            DataError, DivergedError: too many samples or steps had to be skipped.
        """
        step = self.done
        count = self.engine.accumulation
        lr = learning_rate(self.table, step)
        self.engine.set_learning_rate(lr)
        self.engine.train()
        batch = self.source.batch(step, self.rank, self.world, ready, self.device)
        totals: dict[str, Any] = {}
        losses = []
        for index, part in enumerate(batch.pieces(self.engine.micro_batch)):
            # Seeded by step, rank and micro-batch, so that a resumed run draws the same dropout masks.
            seed_everything(self.source.seed, "dropout", step, self.rank, index)
            loss, parts = self.engine(part)
            self.engine.backward(poisoned(loss))
            self.engine.step()
            losses.append(loss.detach())
            for name, value in {"loss": losses[-1], **parts}.items():
                totals[name] = totals.get(name, 0) + value / count
        norm = self.engine.grad_norm()
        skipped = self.engine.skipped
        self.guard.after_step(step + 1, skipped, norm, losses, np.split(ready.samples.indices, count))
        self.done += 1
        # A skipped step changes neither weights nor averages.
        if not skipped:
            self._after_step()
        self._busy += time.monotonic() - self._began
        values = {**totals, "noise_level": batch.noise_level, "lr": lr}
        return values if norm is None else values | {"grad_norm": norm}

    def _after_step(self) -> None:
        if self.table.ema_decay:
            state.update_average(self.engine, self.table.ema_decay, self.done)
        taken = Taken(self.engine, self.model.backbone, self.done, self.done / self.table.steps)
        for regularizer in self.model.objective.regularizers.values():
            after_step = getattr(regularizer, "after_step", None)
            if after_step is not None:
                with torch.no_grad():
                    after_step(taken)

    def report(self, values: dict[str, Any]) -> None:
        """Log the values of a step and validate, if they are due. All ranks must call this after each step."""
        table = self.table
        validates = self.finished or (table.validate_every and self.done % table.validate_every == 0)
        if not (validates or self.done % table.log_every == 0):
            return
        means = distributed.mean_over_ranks({name: float(value) for name, value in values.items()}, self.device)
        # NaN and infinity are no JSON; the guard's counts show that a step was skipped.
        self.last = {name: value for name, value in means.items() if math.isfinite(value)} | self.guard.counts()
        self.last["samples_per_second"] = (self.done - self._first) * table.global_batch / self._busy
        if self.held_out is not None and validates:
            # With the averages, since these are the weights that are exported.
            with state.averaged(self.engine) if table.ema_decay else contextlib.nullcontext():
                self.last |= validate(self.model, self.held_out, self.device)
        if self.log is not None:
            self.log.write(self.done, self.last)

    def save(self, anyway: bool) -> None:
        """Write a checkpoint if one is due, or ``anyway``. All ranks must call this after each step."""
        due = anyway or self.finished or self.done % self.table.checkpoint_every == 0
        if self.checkpoints is not None and due:
            self.checkpoints.save(self.done, lambda place: state.write(self.engine, place))
            # Not of a run that was asked to stop, which is waited for.
            if self.table.pictures and not anyway:
                self._draw()

    def _draw(self) -> None:
        """Draw the samples of a checkpoint on the first rank, with the weights that would be exported."""
        averaged = self.table.ema_decay > 0
        backbone = self.model.backbone
        pictures = self.pictures if self.pictures is not None and self.pictures.works else None
        weights = {}
        for parameter in backbone.parameters():
            value = self.engine.trained_value(parameter, averaged)
            # One at a time, so that a full GPU has room for them.
            if pictures is not None:
                weights[id(parameter)] = value.cpu()
        if pictures is not None:
            # By all names that a parameter has: two, if a head is tied to an embedding.
            names = {name: id(p) for name, p in backbone.named_parameters(remove_duplicate=False)}
            state = {**backbone.state_dict(), **{name: weights[place] for name, place in names.items()}}
            pictures.draw(self.done, state)
