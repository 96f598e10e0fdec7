"""Reads the samples of the coming steps while a step computes, and waits for them no longer than the recipe allows.

A thread reads where samples are small (token shards), worker processes where they must be decoded (images).
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

from rearkit.data.training_data import Samples
from rearkit.errors import DataError, RearkitError
from rearkit.training.batches import BatchSource

AHEAD = 2  # steps that each reader is ahead
IDLE = -1
JOIN_S = 2.0  # a read that hangs is left behind


class Feed:
    """This rank's samples of one step after another; use it as a context.

    Args:
        source: what to read.
        steps: the steps, in order.
        rank: whose share of each.
        world: number of ranks.
        timeout: seconds to wait for a step's samples.
        workers: processes that read; 0 for a thread.
    """

    def __init__(
        self, source: BatchSource, steps: range, rank: int, world: int, timeout: float, workers: int = 0
    ) -> None:
        self.source, self.steps, self.timeout, self.workers = source, steps, timeout, workers
        # Which shard each reader is at, seen from here though the reader may be another process, or hang.
        self._at = torch.full((max(workers, 1),), IDLE).share_memory_()
        self._shares = _Shares(source, rank, world, self._at)
        self._stop = threading.Event()
        self._queue: queue.Queue[Samples | Exception] = queue.Queue(AHEAD)
        self._iterator: Any = None  # torch's, over samples and exceptions
        self._processes: list[BaseProcess] = []
        self._step = steps.start
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Feed:
        if self.workers and self.steps:
            loader = DataLoader(
                self._shares,
                batch_size=None,
                sampler=self.steps,
                num_workers=self.workers,
                prefetch_factor=AHEAD,
                timeout=self.timeout,
            )
            others = multiprocessing.active_children()
            # Launchers, Slurm and a terminal signal all processes of a rank. The readers, which inherit what is
            # blocked, leave it to the process that trains, which still wants the samples of the step it is at.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                self._iterator = iter(loader)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._processes = [child for child in multiprocessing.active_children() if child not in others]
        else:
            # A daemon, so that a read that hangs does not keep the process from ending.
            self._thread = threading.Thread(target=self._read, name="rearkit-feed", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._iterator is not None:  # not left to its end, which a traceback may put off
            self._iterator._shutdown_workers()
            self._iterator = None
        for process in self._processes:  # one whose read hangs; torch's own SIGTERM is blocked there
            process.kill()
        while not self._queue.empty():  # wakes a thread that waits for room
            self._queue.get_nowait()
        if self._thread is not None:  # one in the middle of a read must not meet the interpreter's end
            self._thread.join(JOIN_S)
        if isinstance(error, RuntimeError) and "is killed by signal" in str(error):  # torch's, at the end of any child
            raise self._killed(self._step) from None

    def next(self, step: int) -> Samples:
        """Return the samples of the next step, which ``step`` names for messages.

        Raises:
            DataError: they did not come in time, or cannot be read.
        """
        self._step = step
        try:
            item = self._queue.get(timeout=self.timeout) if self._iterator is None else next(self._iterator)
        except queue.Empty:
            raise self._late(step) from None
        except RuntimeError as error:  # torch's loader has no class of its own for these
            if "timed out" in str(error):
                raise self._late(step) from None
            if "exited unexpectedly" in str(error):
                raise self._killed(step) from None
            raise
        if isinstance(item, Exception):
            raise item
        return item

    def _read(self) -> None:
        for step in self.steps:
            if self._stop.is_set():
                return
            self._queue.put(self._shares[step])

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
        """Name the shard at which the reader is that owes a step's samples, which they take in turn."""
        at = int(self._at[(step - self.steps.start) % len(self._at)])
        return self.source.data.names[at] if at != IDLE else "no shard: it waits for the machine"


class _Shares(Dataset[Samples]):
    """A rank's samples by step. What goes wrong is returned: raised in a process, it would come with a traceback."""

    def __init__(self, source: BatchSource, rank: int, world: int, at: torch.Tensor) -> None:
        self.source, self.rank, self.world, self.at = source, rank, world, at

    def __getitem__(self, step: int) -> Samples | Exception:  # type: ignore[override]
        worker = get_worker_info()
        slot = 0 if worker is None else worker.id

        def reading(shard: int) -> None:
            self.at[slot] = shard

        try:
            return self.source.read(step, self.rank, self.world, reading)
        except RearkitError as error:
            return error
        except Exception as error:
            if worker is not None:
                raise  # torch hands it on
            return error
        finally:
            reading(IDLE)
