"""Streams of images: decoded ahead in threads while those before are used, and shuffled within a window."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import attrs
import torch
from torch import Tensor

from rearkit.data.bad_samples import Unusable
from rearkit.data.decoding import Decoding, decoded

T = TypeVar("T")
# Images under way for each thread: enough to keep all busy while one large image holds up the order.
AHEAD = 8
WINDOW = 2000  # images among which the next one of a random order is drawn


@attrs.frozen(eq=False)
class ReadImage:
    """One image as read: uint8 (3, R, R), its class, its key."""

    image: Tensor
    label: int
    key: str


class Ahead(Generic[T]):
    """Decodes images in threads, which Pillow lets run side by side, and gives them back in their order.

    Args:
        how: how images become pixels.
        threads: number of threads; 0 to decode in the caller's own.
    """

    def __init__(self, how: Decoding, threads: int) -> None:
        self.how = how
        self.window = AHEAD * threads
        self._pool = ThreadPoolExecutor(threads, "decoding") if threads else None
        self._waiting: deque[tuple[T, Future[Tensor]]] = deque()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def add(self, content: bytes | Unusable, about: T) -> Iterator[tuple[T, Tensor | Unusable]]:
        """Take the bytes of an image, or why there are none; yield what is due: uint8 (3, R, R), or why not."""
        future: Future[Tensor] = Future()
        if isinstance(content, Unusable):
            future.set_exception(content)
        elif self._pool is not None:
            future = self._pool.submit(decoded, content, self.how)
        else:
            try:
                future.set_result(decoded(content, self.how))
            except Unusable as error:
                future.set_exception(error)
        self._waiting.append((about, future))
        while len(self._waiting) > self.window:
            yield self._next()

    def rest(self) -> Iterator[tuple[T, Tensor | Unusable]]:
        """Yield what is left."""
        while self._waiting:
            yield self._next()

    def failed(self) -> list[tuple[T, Unusable]]:
        """Wait for all that are under way; take out those that cannot be decoded, and return them."""
        failed: list[tuple[T, Unusable]] = []
        kept: deque[tuple[T, Future[Tensor]]] = deque()
        for about, future in self._waiting:
            error = future.exception()
            if isinstance(error, Unusable):
                failed.append((about, error))
            else:
                kept.append((about, future))
        self._waiting = kept
        return failed

    def _next(self) -> tuple[T, Tensor | Unusable]:
        about, future = self._waiting.popleft()
        try:
            return about, future.result()
        except Unusable as error:
            return about, error


def shuffled(images: Iterator[T], generator: torch.Generator) -> Iterator[T]:
    """Yield images in a random order: each is drawn from the `WINDOW` ones that were read last."""
    held: list[T] = []
    for image in images:
        if len(held) < WINDOW:
            held.append(image)
            continue
        index = int(torch.randint(WINDOW, (), generator=generator))
        held[index], image = image, held[index]
        yield image
    for index in torch.randperm(len(held), generator=generator).tolist():
        yield held[index]
