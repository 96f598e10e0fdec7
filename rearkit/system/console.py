"""Progress output: bars with an ETA on a terminal; elsewhere (a log file, a batch job) a line every few seconds."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from rearkit.system.ranks import is_main_process, number_in_environment

# Seconds between lines where there is no terminal: often enough to see progress, without filling a log.
LINE_EVERY_S = 15.0
REDRAW_EVERY_S = 0.5

# Escape sequences could move the cursor or rename the window; marks of direction could show one name as another; a
# surrogate alone cannot be encoded.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text with its control characters written out, as Python would; lines and tabs stay.

    Names, manifests and messages may come from files that somebody else wrote.
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Printing(Console):
    """A console on which no text has control characters, cells of tables included."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


# Columns of tables where there is no terminal: rich would cut them at 80.
WIDE = 240

# soft_wrap: a long line stays one line, so that paths can be copied and log files searched.
console = _Printing(highlight=False, soft_wrap=True)
if not console.is_terminal and not number_in_environment("COLUMNS", 0):
    console.width = WIDE
stderr = _Printing(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line on rank 0; do nothing on other ranks."""
    if is_main_process():
        # Escaped, since rich would take the brackets of `[train]` for markup.
        console.print(escape(text))


@cache
def say_once(text: str) -> None:
    """Print a line on rank 0 once in a process, where the same thing is looked at several times."""
    say(text)


class Bar:
    """Progress of one long piece of work; call `advance` as it proceeds."""

    def __init__(self, label: str, total: int | None, progress: Progress | None, done: int) -> None:
        self.label = label
        self.total = total
        self.progress = progress
        self.done = done
        # The speed counts from here: what an earlier, interrupted run did took none of this run's time.
        self.first = done
        self.started = time.monotonic()
        self.last_line = self.started
        self.task = None if progress is None else progress.add_task(label, total=total, completed=done, info="")

    def advance(self, count: int = 1, info: str | Callable[[], str] = "") -> None:
        """Count ``count`` more items as done, and show ``info`` beside the bar.

        A function is called only when the line is due, for what is costly to know, such as a number on a GPU.
        """
        self.done += count
        every = LINE_EVERY_S if self.progress is None else REDRAW_EVERY_S
        due = isinstance(info, str) or time.monotonic() - self.last_line > every
        text = "" if not due else info if isinstance(info, str) else info()
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, advance=count)
            if due:
                self.progress.update(self.task, info=escape(printable(text)))
                self.last_line = time.monotonic()
        elif is_main_process() and time.monotonic() - self.last_line > LINE_EVERY_S:
            self.last_line = time.monotonic()
            console.print(escape(f"{self.label}: {self._plain()}  {text}"))

    def _plain(self) -> str:
        speed = (self.done - self.first) / (self.last_line - self.started)
        if self.total is None or not speed:
            return f"{self.done}"
        return f"{self.done}/{self.total}, {(self.total - self.done) / speed:.0f} s left"


@contextmanager
def progress_bar(label: str, total: int | None, done: int = 0) -> Iterator[Bar]:
    """Show a progress bar while the block runs.

    Args:
        label: the text before the bar.
        total: number of items; None if it is not known.
        done: number of items that an earlier run finished.
    """
    if not (console.is_terminal and is_main_process()):
        # A bar redraws itself with control characters, which would fill a log file.
        yield Bar(label, total, None, done)
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(label, total, progress, done)
