"""Work in several processes, none of which outlives the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from rearkit.errors import RearkitError

# Of Linux's <sys/prctl.h>: which signal a process gets when its parent dies.
PR_SET_PDEATHSIG = 1


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
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(count, initializer=_prepare) as pool:
        try:
            yield from pool.map(work, *zip(*jobs, strict=True))
        except BrokenProcessPool:
            raise RearkitError(
                f"one of {count} processes was killed, perhaps for lack of memory; what is finished is kept: "
                "run the same command again, with fewer --workers"
            ) from None
        except KeyboardInterrupt:
            # The pool waits for running jobs, which may take minutes. Its list of processes is private.
            for child in multiprocessing.active_children():
                if child not in others:
                    child.kill()
            raise


def _prepare() -> None:
    # A signal ends this process at once and silently: what to say and to keep is the parent's business.
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell starts what runs in the background with SIGINT ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    end_with_parent()


def end_with_parent(pipe: int | None = None) -> None:
    """End this process when its parent does: it would wait for work forever, and write where others now write.

    Args:
        pipe: what only the parent can write to, and so has an end when the parent has; None for a process that
            `multiprocessing` started, which has such a pipe already.
    """
    parent = multiprocessing.parent_process()
    if pipe is None and parent is not None:
        pipe = int(parent.sentinel)
    assert pipe is not None
    # The kernel also ends a process that is stopped, or hangs in code that keeps all threads from running. A fork
    # server would be another parent than the process that waits.
    if sys.platform == "linux" and (parent is None or parent.pid == os.getppid()):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with, args=(pipe,), name="rearkit-parent", daemon=True).start()


def _end_with(pipe: int) -> None:
    wait([pipe])
    os._exit(1)
