"""Errors that are the user's to mend, each with an exit code; anything else that escapes is a bug of ours.

A message is written to be read on one line without a traceback: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_STORAGE = 4
EXIT_DIVERGED = 5
EXIT_PREEMPTED = 75  # stopped by SIGTERM after a checkpoint: run it again
EXIT_INTERRUPTED = 130


class RearkitError(Exception):
    """A mistake that the user can mend: a recipe, an option, a missing file, an output folder."""

    exit_code = EXIT_USAGE


class RecipeError(RearkitError):
    """Everything that is wrong with one recipe, found in one pass.

    Attributes:
        problems: one line each, naming file, table, key, what was expected and the nearest valid name.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class PluginError(RearkitError):
    """A component that cannot be registered or found."""


class WeightsError(RearkitError):
    """Weights that do not fit the module that the recipe describes."""


class DataError(RearkitError):
    """Input data that cannot be used, or too much of it, or tokens below the recipe's floors."""

    exit_code = EXIT_DATA


class StorageError(RearkitError):
    """A write that failed (full disk, no permission); what was written before is undamaged."""

    exit_code = EXIT_STORAGE


class DivergedError(RearkitError):
    """Training went wrong: too many steps with a NaN or infinite loss."""

    exit_code = EXIT_DIVERGED


class Interrupted(RearkitError):
    """The run was told to stop, and has saved where it was."""

    exit_code = EXIT_INTERRUPTED


class Preempted(Interrupted):
    """The run was told to stop by SIGTERM, as clusters do before they take a machine away."""

    exit_code = EXIT_PREEMPTED


def first_line(error: BaseException) -> str:
    """Return the first line of somebody else's error, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``names``, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
