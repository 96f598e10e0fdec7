"""Which of the launcher's processes this is, by the environment: before there is a process group, and without torch.

`rearkit.system.signals` imports this before anything else, so that it imports little itself.
"""

from __future__ import annotations

import os


def number_in_environment(name: str, default: int) -> int:
    """Return a variable that a launcher sets; what is no number was set by something else."""
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else default


def world_size() -> int:
    """Return the number of ranks that the launcher started."""
    return number_in_environment("WORLD_SIZE", 1)


def rank() -> int:
    """Return this process's rank."""
    # A shell may keep RANK from another job.
    return number_in_environment("RANK", 0) if world_size() > 1 else 0


def is_main_process() -> bool:
    """Return whether this is rank 0, the only rank that prints."""
    return rank() == 0
