"""Ctrl-C and SIGTERM at any moment: one line and an exit code of their own, within seconds.

`__main__` imports this before anything else, so that it imports little itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from rearkit.system.ranks import is_main_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
STOPPED = "stopped; what is finished is kept, run the same command to go on"
# One Ctrl-C may arrive twice: from the terminal, and from a launcher. Within so many seconds, a second signal counts as
# an echo of the first.
ECHO_S = 2.0
# Seconds after a signal until the process ends wherever it is. Less than the 10 that are promised.
UNWIND_S = 7.0
POKE_S = 0.1


class Guard:
    """Within this context a signal raises KeyboardInterrupt as soon as that is safe; no process outlives it for long.

    Raised in the middle of an import, it would leave half a module or be taken for an error of that module; in
    `__del__` it would be swallowed. There, a thread sends the signal again, until it has come through. The main thread
    may also be in C++ code, where Python handles no signal: after `UNWIND_S` the thread ends the process itself. What
    is on the disk is whole at any time, as with kill -9.

    Attributes:
        number: the first signal that came; None before.
        code: what the process is about to exit with; set once it has said why.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.code: int | None = None
        self.request: StopRequest | None = None
        self._since = 0.0
        self._patience = 0
        self._raised: KeyboardInterrupt | None = None
        self._poked = False
        self._before: dict[int, Any] = {}
        self._unraisable: Any = None
        self._depth = 0
        self._wakeup = -1
        self._at_fork = False

    def __enter__(self) -> Guard:
        self._depth += 1
        if self._depth == 1:
            self.number = self.code = self._raised = None
            _take(self._before, self._note)
            if self._before:
                self._watch_over()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and self._before:
            signal.set_wakeup_fd(-1)
            os.close(self._wakeup)
            sys.unraisablehook = self._unraisable
            _put_back(self._before)

    def _watch_over(self) -> None:
        import threading

        reading, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        # Python's own handlers run in the main thread, between two of its instructions. This pipe is written at once.
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._ignore
        threading.Thread(target=self._watch, args=(reading,), name="rearkit-signals", daemon=True).start()
        if not self._at_fork:
            self._at_fork = True
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a forked process, end at a signal silently: what to say and to keep is the parent's business."""
        if self._before:
            signal.set_wakeup_fd(-1)
            for number in self._before:
                if isinstance(getattr(signal.getsignal(number), "__self__", None), Guard | StopRequest):
                    signal.signal(number, signal.SIG_DFL)
            self._before = {}

    def _ignore(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Print no traceback where the interrupt was swallowed; it is raised again."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._unraisable(unraisable)

    def _note(self, number: int, frame: FrameType | None) -> None:
        poked, self._poked = self._poked, False
        now = time.monotonic()
        again = not poked and self.number is not None and now - self._since > ECHO_S
        if self.number is None:
            self._since = now
            self.number = number
        if self.code is not None or (again and self._is_under_way()):
            self.leave()
        if not self._is_under_way() and is_safe(frame):
            self.interrupt()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt, and remember it."""
        self._raised = KeyboardInterrupt()
        raise self._raised

    def _is_under_way(self) -> bool:
        """Return whether the raised interrupt is being handled somewhere up the stack: something is cleaning up."""
        error = sys.exc_info()[1]
        while error is not None and error is not self._raised:
            error = error.__context__
        return error is not None

    def _watch(self, reading: int) -> None:
        """Look after each signal, in a thread."""
        while content := os.read(reading, 1000):
            number = next((byte for byte in content if byte in NUMBERS), None)
            if number is not None:
                self._see_through(number)
        os.close(reading)

    def _see_through(self, number: int) -> None:
        since = time.monotonic()
        while self._depth:
            time.sleep(POKE_S)
            request = self.request
            if self._patience or signal.getsignal(number) != self._note:
                # Where a step is finished and saved, or others are waited for.
                since = time.monotonic()
                if request is not None and request.is_overdue():
                    self._poke(number)
                elif request is None and signal.getsignal(number) != self._note and not self._patience:
                    return
            elif time.monotonic() - since > UNWIND_S:
                self.number = self.number or number
                self.leave()
            elif self.number is not None:
                self._poke(number)

    def _poke(self, number: int) -> None:
        import threading

        self._poked = True
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, number)

    def end(self) -> None:
        """Where this process is the command line's alone, end it without taking down torch, which takes seconds."""
        if self._depth > 1:
            import contextlib

            for stream in (sys.stdout, sys.stderr):
                # Nobody may be there to read it.
                with contextlib.suppress(Exception):
                    stream.flush()
            self.leave()

    def leave(self) -> None:
        """End the process now, with its line if it has said none, and with the processes that it started."""
        if self.code is None and is_main_process():
            # Written past all buffers and locks, which the main thread may hold; a progress bar hides the cursor.
            start = "\x1b[?25h\n" if os.isatty(2) else ""
            os.write(2, f"{start}error: {STOPPED}\n".encode())
        if "multiprocessing.process" in sys.modules:
            for child in sys.modules["multiprocessing.process"].active_children():
                child.kill()
        os._exit(exit_code() if self.code is None else self.code)

    def patient(self) -> Patience:
        """Within the returned context, what was asked to stop is waited for as long as it takes."""
        return Patience(self)


class Patience:
    """See `Guard.patient`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __enter__(self) -> None:
        self._guard._patience += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard._patience -= 1


GUARD = Guard()


class StopRequest:
    """Within this context, `signal` holds the number of the signal that asked the process to stop, or None.

    A second one, seconds later, raises KeyboardInterrupt, as does the first where `waiting` is set and does not end.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.waiting = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        _take(self._before, self._note)
        GUARD.request = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        GUARD.request = None
        taken = bool(self._before)
        _put_back(self._before)
        # It came too late for the work to notice: whoever handled signals before has to.
        if self.signal is not None and kind is None and taken:
            signal.raise_signal(self.signal)

    def is_overdue(self) -> bool:
        """Return whether a signal came and the process does nothing since but wait for samples."""
        return self.signal is not None and self.waiting and time.monotonic() - self._since > UNWIND_S

    def _note(self, number: int, frame: FrameType | None) -> None:
        poked, GUARD._poked = GUARD._poked, False
        if self.signal is None:
            # The time first: once `signal` is set, the handler of a further signal compares with it.
            self._since = time.monotonic()
            self.signal = number
        elif (self.is_overdue() if poked else time.monotonic() - self._since > ECHO_S) and is_safe(frame):
            GUARD.number = self.signal
            GUARD.interrupt()


def exit_code() -> int:
    """Return the exit code of a process that a signal stopped."""
    from rearkit.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

    return EXIT_PREEMPTED if GUARD.number == signal.SIGTERM else EXIT_INTERRUPTED


def is_safe(frame: FrameType | None) -> bool:
    """Return whether an exception raised here goes up to the command line: not within an import or `__del__`."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name == "__del__":
            return False
        frame = frame.f_back
    return True


def _take(before: dict[int, Any], handler: Any) -> None:
    import threading

    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            # A shell starts what runs in the background with SIGINT ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)


def _put_back(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        # None stands for a handler that was not set from Python, which cannot be put back.
        signal.signal(number, handler or signal.SIG_DFL)
    before.clear()
