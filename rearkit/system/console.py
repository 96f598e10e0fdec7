"""What people see while a run goes on: progress bars with ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0

console = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def is_main_process() -> bool:
    """Only rank 0 speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line, from rank 0 only."""
    if is_main_process():
        console.print(escape(text))


class Bar:
    """A piece of long work with a known length; `advance` it."""

    def __init__(self, label: str, total: int | None, progress: Progress | None, done: int) -> None:
        self.label, self.total, self.progress, self.done = label, total, progress, done
        self.first, self.started = done, time.monotonic()
        self.last_line = self.started
        self.task = None if progress is None else progress.add_task(label, total=total, completed=done, info="")

    def advance(self, count: int = 1, info: str = "") -> None:
        """Count ``count`` more as done; ``info`` is shown beside the bar."""
        self.done += count
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, advance=count, info=escape(info))
        elif is_main_process() and time.monotonic() - self.last_line > LINE_EVERY_S:
            self.last_line = time.monotonic()
            console.print(escape(f"{self.label}: {self._plain()}  {info}"))

    def _plain(self) -> str:
        speed = (self.done - self.first) / (self.last_line - self.started)
        if self.total is None or not speed:
            return f"{self.done}"
        return f"{self.done}/{self.total}, {(self.total - self.done) / speed:.0f} s left"


@contextmanager
def progress_bar(label: str, total: int | None, done: int = 0) -> Iterator[Bar]:
    """Show ``label`` and a bar while the block runs; ``done`` is where a resumed piece of work starts."""
    if not (console.is_terminal and is_main_process()):
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
