"""Ctrl-C and SIGTERM: the first lets the step end and be saved; a second one, seconds later, stops at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# One Ctrl-C may arrive twice: the terminal sends it to each rank, and so does the rank's launcher. Within so many
# seconds, a second signal counts as an echo of the first.
ECHO_S = 2.0


class StopRequest:
    """Within this context, `signal` holds the number of the signal that asked the process to stop, or None."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
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
            # The time first: once `signal` is set, the handler of a further signal compares with it.
            self._since = time.monotonic()
            self.signal = number
        elif time.monotonic() - self._since > ECHO_S:
            raise KeyboardInterrupt


class Terminations:
    """Within this context, SIGTERM raises KeyboardInterrupt, as Ctrl-C does, and sets `came`."""

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> Terminations:
        # Python allows signal handlers in the main thread only.
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._main:
            # None stands for a handler that was not set from Python, which cannot be put back.
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt
