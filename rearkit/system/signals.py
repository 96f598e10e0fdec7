"""Ctrl-C and SIGTERM at a step's end: finish the step, save, then stop. A second one, seconds later, stops at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

ECHO_S = 2.0  # a terminal's Ctrl-C reaches a rank itself and once more by way of its launcher


class StopRequest:
    """Within this context, `signal` holds the number of the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # signals can be caught there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > ECHO_S:
            raise KeyboardInterrupt


class Terminations:
    """Within this context, SIGTERM stops the process in the way of Ctrl-C, and `came` tells that it did."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Terminations:
        self._main = threading.current_thread() is threading.main_thread()  # signals can be caught there only
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt
