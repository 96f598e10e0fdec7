"""Errors that a user can fix, each with an exit code. Any other exception that reaches the user is a bug.

It is rearkit's, or that of a plugin, which is then named. A message fits on one line and needs no traceback: what is
wrong, where, and what to do about it.
"""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

EXIT_OK = 0
EXIT_INTERNAL = 1
# 2 is what the command line's parser itself exits with, for a wrong option.
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_STORAGE = 4
EXIT_DIVERGED = 5
# An exception out of a plugin's component, which its authors did not turn into a message.
EXIT_PLUGIN = 6
# Stopped by SIGTERM after a checkpoint, to be run again: EX_TEMPFAIL of sysexits.h, on which schedulers can requeue.
EXIT_PREEMPTED = 75
# 128 + SIGINT, as shells report Ctrl-C.
EXIT_INTERRUPTED = 130

# Characters of one message, and messages at once; a file that is no recipe may have a thousand of any length.
LONGEST_MESSAGE = 2_000
MOST_PROBLEMS = 20


class RearkitError(Exception):
    """A mistake that the user can fix: in a recipe, an option, a missing file, an output folder."""

    exit_code = EXIT_USAGE


class RecipeError(RearkitError):
    """All errors in one recipe, reported together.

    Attributes:
        problems: one line each: file, table, key, what was expected and the nearest valid name.
    """

    def __init__(self, problems: list[str]) -> None:
        told = [shortened(problem) for problem in problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            told.append(f"and {len(problems) - MOST_PROBLEMS:,} more")
        super().__init__("\n".join(told))
        self.problems = problems

    def __reduce__(self) -> tuple[object, ...]:
        # Errors go from process to process by pickle, which would call the class with the text.
        return type(self), (self.problems,), vars(self)


class PluginError(RearkitError):
    """A component that cannot be registered or found, or does not keep its contract."""


class ContractError(PluginError):
    """A component that breaks its contract, as far as its authors have to mend it."""

    exit_code = EXIT_PLUGIN


class WeightsError(RearkitError):
    """Weights that do not fit the module that the recipe describes."""


class DataError(RearkitError):
    """Input data that cannot be used or has too many bad samples, or tokens below the recipe's minimum quality."""

    exit_code = EXIT_DATA


class StorageError(RearkitError):
    """A write that failed (full disk, no permission); data written earlier is undamaged."""

    exit_code = EXIT_STORAGE


class DivergedError(RearkitError):
    """Training diverged: too many steps with a NaN or infinite loss."""

    exit_code = EXIT_DIVERGED


class Interrupted(RearkitError):
    """The run was asked to stop; the message says whether its state was saved."""

    exit_code = EXIT_INTERRUPTED


class Preempted(Interrupted):
    """The run was stopped by SIGTERM, which clusters send before they take a machine away."""

    exit_code = EXIT_PREEMPTED


def shortened(text: str, most: int = LONGEST_MESSAGE) -> str:
    """Return a text of ``most`` characters: of a value as long as a file, its beginning."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, or the error's class if it has no text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``names``, or an empty string if none is near."""
    import difflib

    # 0.5 finds swapped and missing letters, and offers nothing for unrelated words.
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def interruption(number: int, what: str, saved: bool) -> Interrupted:
    """Return the error for a signal: what was stopped by it, and whether it goes on from there."""
    where = "saved; run the same command to go on" if saved else "nothing was saved, since no folder was given"
    # A cluster sends SIGTERM before it takes a machine away. The exit code differs, so that it can start the job again.
    kind = Preempted if number == signal.SIGTERM else Interrupted
    return kind(f"{what}, {where}")
