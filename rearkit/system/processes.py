"""Work in several processes, none of which outlives the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from rearkit.errors import RearkitError


def in_processes(work: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int | None) -> Iterator[Any]:
    """Call ``work(*job)`` for each job, several at a time; yield what it returns, in the order of the jobs.

    Args:
        work: a function of a module; it and what it takes and returns are pickled.
        jobs: the arguments of each call.
        workers: processes; None for one per core.

    Raises:
        RearkitError: a process was killed. What ``work`` raises is raised here.
    """
    if not jobs:
        return
    count = min(workers or os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(count, initializer=_prepare) as pool:
        try:
            yield from pool.map(work, *zip(*jobs, strict=True))
        except BrokenProcessPool:
            raise RearkitError(
                f"one of {count} processes was killed, perhaps for lack of memory; what is finished is kept: "
                "run the same command again, with fewer --workers"
            ) from None


def _prepare() -> None:
    # A signal ends this process at once and silently: what to say and to keep is the parent's business.
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts what runs in the background with SIGINT ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent does: it would wait for work forever, and write where others now write."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
