"""Reads the samples of the next steps, and draws their noise, while a step computes; waits no longer than allowed.

A thread reads samples that are small (token shards); worker processes read those that must be decoded (images).
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from rearkit.errors import DataError, RearkitError
from rearkit.system.processes import end_with_parent
from rearkit.training.batches import BatchSource, Ready

# Steps that each reader is ahead: one is ready while the next is read. Each takes the memory of a step's samples.
AHEAD = 2
# Stands for "reads no shard now"; shards are numbered from 0.
IDLE = -1
# Seconds that a running read is given to finish at the end; one that hangs is abandoned.
JOIN_S = 2.0
# torch raises this in the main thread, wherever that is, when a worker dies; only the text identifies it.
KILLED = "is killed by signal"


class Feed:
    """This rank's samples, step by step; use it as a context.

    Args:
        source: reads the samples.
        steps: the steps to read for, in order.
        rank: this rank, which reads its share of each step's samples.
        world: number of ranks.
        timeout: seconds to wait for a step's samples.
        workers: number of processes that read; 0 for a thread.
    """

    def __init__(
        self, source: BatchSource, steps: range, rank: int, world: int, timeout: float, workers: int = 0
    ) -> None:
        self.source = source
        self.steps = steps
        self.timeout = timeout
        self.workers = workers
        # The shard that each reader is reading. In shared memory, so that a message can name the shard even if the
        # reader is another process that hangs or is dead.
        self._at = torch.full((max(workers, 1),), IDLE).share_memory_()
        self._shares = _Shares(source, rank, world, self._at)
        self._stop = threading.Event()
        self._queue: queue.Queue[Ready | Exception] = queue.Queue(AHEAD)
        # DataLoader's iterator over samples and exceptions; None if a thread reads.
        self._iterator: Any = None
        # Whether the next item is wanted of that iterator, or, at the end, none more.
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._processes: list[BaseProcess] = []
        self._step = steps.start
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Feed:
        if self.workers and self.steps:
            loader = DataLoader(
                self._shares,
                # An item is a whole step already, and the "sampler" is the list of steps.
                batch_size=None,
                sampler=self.steps,
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                timeout=self.timeout,
                pin_memory=self.source.pins,
                worker_init_fn=_end_with_parent,
            )
            others = multiprocessing.active_children()
            # Launchers, Slurm and a terminal send a signal to all processes of a rank. The readers, which inherit the
            # blocked signals, must outlive it: the training process still needs the samples of the current step.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                self._iterator = iter(loader)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            # The loader has no public list of its processes, so they are those that were not there before.
            self._processes = [child for child in multiprocessing.active_children() if child not in others]
        # A daemon thread, so that a read that hangs does not keep the process from exiting.
        self._thread = threading.Thread(
            target=self._read if self._iterator is None else self._pass_on, name="rearkit-feed", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._wanted.put(False)
        if self._iterator is not None:
            self._end_readers()
        # Wakes a thread that waits for room in the queue, so that it sees the stop event.
        while not self._queue.empty():
            self._queue.get_nowait()
        if self._thread is not None:
            # Let a running read finish before the interpreter shuts down.
            self._thread.join(JOIN_S)
        if isinstance(error, RuntimeError) and KILLED in str(error):
            raise self._killed(self._step) from None

    def _end_readers(self) -> None:
        def kill() -> None:
            for process in self._processes:
                process.kill()

        # torch waits for each reader, and then sends SIGTERM, which is blocked there; so one whose read hangs, or that
        # is stopped, is killed meanwhile. Of its death torch's handler would make an error, wherever this thread is.
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if main else None
        timer = threading.Timer(JOIN_S, kill)
        timer.start()
        try:
            # Called here, since torch calls it when the iterator is freed, which a traceback that refers to it delays.
            self._iterator._shutdown_workers()
            self._iterator = None
        finally:
            timer.cancel()
            kill()
            if before is not None:
                signal.signal(signal.SIGCHLD, before)

    def next(self, step: int) -> Ready:
        """Return the samples of the next step; ``step`` is its number, for messages.

        Raises:
            DataError: they did not come in time, or cannot be read.
        """
        # Kept for `__exit__`, which may learn of a dead worker while the step computes.
        self._step = step
        self._wanted.put(True)
        try:
            item = self._queue.get(timeout=self.timeout)
        except queue.Empty:
            raise self._late(step) from None
        except RuntimeError as error:
            item = error
        if isinstance(item, RuntimeError):
            # torch's loader has no exception classes of its own for these, so they are known by their texts.
            if "timed out" in str(item):
                raise self._late(step) from None
            if "exited unexpectedly" in str(item) or KILLED in str(item):
                raise self._killed(step) from None
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self) -> None:
        for step in self.steps:
            if self._stop.is_set():
                return
            # Blocks while the queue is full, which keeps the thread `AHEAD` steps ahead and no more.
            item = self._shares[step]
            self._queue.put(item.pin_memory() if self.source.pins and isinstance(item, Ready) else item)

    def _pass_on(self) -> None:
        """Take an item of the processes whenever one is wanted.

        In a thread, since torch has no limit for all of it: of a process that is stopped, an item may have come whose
        memory has not.
        """
        while self._wanted.get():
            try:
                self._queue.put(next(self._iterator))
            except Exception as error:
                self._queue.put(error)
                return

    def _late(self, step: int) -> DataError:
        return DataError(
            f"train: no samples for step {step + 1} in {self.timeout:g} s ([train.guards] data_timeout); the reader "
            f"hangs at {self._shard(step)}"
        )

    def _killed(self, step: int) -> DataError:
        return DataError(
            f"train: a process that reads samples was killed at step {step + 1} (for memory?), while reading "
            f"{self._shard(step)}"
        )

    def _shard(self, step: int) -> str:
        """Name the shard that is being read for a step; readers take the steps in turn."""
        at = int(self._at[(step - self.steps.start) % len(self._at)])
        return self.source.data.names[at] if at != IDLE else "no shard: it waits for the machine"


def _end_with_parent(worker: int) -> None:
    """End a reader with its training process: torch's readers look after that only between two samples."""
    end_with_parent()


class _Shares(Dataset[Ready]):
    """A rank's samples by step. Errors are returned: one raised in a worker process arrives with a traceback in it."""

    def __init__(self, source: BatchSource, rank: int, world: int, at: torch.Tensor) -> None:
        self.source = source
        self.rank = rank
        self.world = world
        self.at = at

    def __getitem__(self, step: int) -> Ready | Exception:  # type: ignore[override]
        worker = get_worker_info()
        slot = 0 if worker is None else worker.id

        def reading(shard: int) -> None:
            self.at[slot] = shard

        try:
            return self.source.ready(step, self.rank, self.world, reading)
        except RearkitError as error:
            return error
        except Exception as error:
            # A bug: its traceback is wanted. torch passes it on from a process; from a thread, the queue must.
            if worker is not None:
                raise
            return error
        finally:
            reading(IDLE)
