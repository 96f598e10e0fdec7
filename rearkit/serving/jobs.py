"""Requests from their arrival until their results are forgotten: who waits, what is drawn next, what is kept.

Threads: requests come and go on the event loop's, and one other draws. A lock guards the queue; a job's progress is
only ever written by the thread that draws, and the loop is told after each change.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from typing import Any

import attrs

from rearkit.errors import RearkitError
from rearkit.serving.limits import Limits
from rearkit.serving.wishes import Drawing, Rebuilding

LIVE = ("waiting", "running")


class FullError(RearkitError):
    """Too many requests wait.

    Attributes:
        retry_s: whole seconds after which it may be tried again.
    """

    def __init__(self, waiting: int, retry_s: int) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_s} s")
        self.retry_s = retry_s


@attrs.define(eq=False)
class Job:
    """A request and what has become of it.

    Attributes:
        id: a name that cannot be guessed.
        wish: what is asked for.
        status: waiting, running, done, failed or cancelled.
        error: why it failed.
        tokens: of each image, those that are drawn so far.
        previews: of each image, a JPEG of it so far, and of how many tokens.
        images: the finished ones, as PNG files.
        facts: numbers that came of it.
        pending: indices of images that no batch has taken yet.
        ended: when, by the monotonic clock.
        waiters: how many wait for the answer, or will ask for it; it is dropped when the last one goes.
        changed: set, and replaced, on the event loop after each change.
    """

    id: str
    wish: Drawing | Rebuilding
    status: str = "waiting"
    error: str | None = None
    tokens: list[list[int]] = attrs.field(init=False)
    previews: list[tuple[int, bytes] | None] = attrs.field(init=False)
    images: list[bytes | None] = attrs.field(init=False)
    facts: dict[str, Any] = attrs.field(factory=dict)
    pending: list[int] = attrs.field(init=False)
    ended: float | None = None
    waiters: int = 0
    changed: asyncio.Event = attrs.field(factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        size = self.wish.size
        self.tokens = [[] for _ in range(size)]
        self.previews, self.images = [None] * size, [None] * size
        # A photo is rebuilt in one go, whatever the number of pictures.
        self.pending = list(range(size)) if isinstance(self.wish, Drawing) else [0]

    @property
    def live(self) -> bool:
        """Whether there is still something to do."""
        return self.status in LIVE

    def wake(self) -> None:
        """Tell those who wait on the event loop."""
        before, self.changed = self.changed, asyncio.Event()
        before.set()


class Jobs:
    """The jobs of a server.

    Args:
        limits: of the server.
        loop: the event loop on which requests are answered.
    """

    def __init__(self, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.limits, self.loop = limits, loop
        self.stopping = False
        self.seconds_an_image = 1.0
        self._jobs: dict[str, Job] = {}
        self._some = threading.Condition()

    def add(self, job: Job) -> Job:
        """Let a job wait for its turn; return the one that has its id already, if it asks for the same.

        One that was cancelled is done anew: somebody who sends it again wants it.

        Raises:
            FullError: too many wait.
            RearkitError: another request has this id.
        """
        with self._some:
            known = self._jobs.get(job.id)
            if known is not None:
                if type(known.wish) is not type(job.wish) or known.wish.content() != job.wish.content():
                    raise RearkitError("id: another request has this id; choose another")
                if known.status != "cancelled":
                    return known
            waiting = [other for other in self._jobs.values() if other.status == "waiting"]
            if len(waiting) >= self.limits.waiting:
                images = sum(len(other.pending) for other in waiting)
                seconds = math.ceil(images * self.seconds_an_image / 2)
                raise FullError(len(waiting), min(max(seconds, 1), 600))
            self._forget()
            # At the end of the queue, also where one of this id was cancelled.
            self._jobs.pop(job.id, None)
            self._jobs[job.id] = job
            self._some.notify()
        return job

    def find(self, name: str) -> Job | None:
        """Return a job by its id, if it is known."""
        return self._jobs.get(name)

    def before(self, job: Job) -> int:
        """Return how many requests have their turn before a waiting one."""
        with self._some:
            ahead = itertools.takewhile(lambda other: other is not job, self._jobs.values())
            return sum(other.live for other in ahead)

    def take(self, most: int) -> list[tuple[Job, int]]:
        """Wait for work; return the images of the next batch, each a job and its index, or none if it is to stop."""
        with self._some:
            while not self.stopping:
                ready = [job for job in self._jobs.values() if job.pending]
                if not ready:
                    self._some.wait()
                    continue
                # The first decides the settings; others with the same ones go with it.
                key = ready[0].wish.key
                alike = ready[:1] if key is None else [job for job in ready if job.wish.key == key]
                found = [(job, index) for job in alike for index in job.pending][:most]
                for job, index in found:
                    job.pending.remove(index)
                    job.status = "running"
                return found
        return []

    def cancel(self, job: Job) -> None:
        """Drop a job that is not finished."""
        self._end(job, "cancelled")

    def fail(self, job: Job, error: str) -> None:
        """Give a job up."""
        self._end(job, "failed", error)

    def finish(self, job: Job) -> None:
        """End a job that has all of its images."""
        self._end(job, "done")

    def tell(self, job: Job) -> None:
        """Let those who follow a job look at it again."""
        # The loop may have been closed meanwhile.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(job.wake)

    def stop(self) -> None:
        """Let the thread that draws and all who follow jobs come to an end."""
        with self._some:
            self.stopping = True
            self._some.notify_all()
            jobs = list(self._jobs.values())
        for job in jobs:
            self.tell(job)

    def _end(self, job: Job, status: str, error: str | None = None) -> None:
        with self._some:
            if job.live:
                job.status, job.error, job.ended = status, error, time.monotonic()
                job.pending.clear()
                # Previews are of no use any more.
                job.previews = [None] * len(job.previews)
            # Those behind it move up.
            told = [job, *(other for other in self._jobs.values() if other.status == "waiting")]
        for other in told:
            self.tell(other)

    def _forget(self) -> None:
        """Drop old results: those past their time, then the oldest until the rest is small enough."""
        ended = [job for job in self._jobs.values() if not job.live]
        ended.sort(key=lambda job: -(job.ended or 0))
        size, now = 0, time.monotonic()
        for place, job in enumerate(ended):
            size += sum(len(image) for image in job.images if image is not None)
            old = now - (job.ended or 0) > self.limits.kept_s
            if old or size > self.limits.kept_bytes or place >= self.limits.kept_jobs:
                del self._jobs[job.id]
