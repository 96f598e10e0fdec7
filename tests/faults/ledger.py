"""What became of faults: a ledger that counts them by kind, shared by all tests of this folder."""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import attrs

from rearkit.errors import RearkitError

Outcome = Literal["held", "lost", "silent", "let in", "traceback"]
OUTCOMES: tuple[Outcome, ...] = ("held", "lost", "silent", "let in", "traceback")
# `count_faults.py` names a folder here; ledgers then add up there, and its bars are those of all of them together.
FOLDER = "REARKIT_FAULTS"


@attrs.define
class Ledger:
    """Counts faults by kind and outcome.

    - held: noticed and named, or without any effect;
    - lost: what was whole is gone, or cannot be used any more;
    - silent: other results without a word;
    - let in: a foreign file had something run, fetched or written, or reached the terminal with control characters;
    - traceback: an exception that is no message for a user.

    Attributes:
        counts: how many faults of a kind had an outcome.
        details: a line for each that was not held.
    """

    counts: Counter[tuple[str, Outcome]] = attrs.field(factory=Counter)
    details: list[str] = attrs.field(factory=list)

    def add(self, kind: str, outcome: Outcome, detail: str = "") -> None:
        """Count one fault; ``detail`` says what was done and what came of it."""
        self.counts[kind, outcome] += 1
        if outcome != "held":
            self.details.append(f"{outcome}: {kind}: {detail}")

    def attempt(self, kind: str, detail: str, work: Callable[[], Outcome]) -> None:
        """Count what ``work`` returns; an error for users is held, and any other exception a traceback."""
        try:
            outcome = work()
        except RearkitError as error:
            outcome, detail = ("held", detail) if "\n" not in str(error) else ("traceback", f"{detail}: {error}")
        except Exception as error:
            outcome, detail = "traceback", f"{detail}: {type(error).__name__}: {error}"
        self.add(kind, outcome, detail)

    def take(self, other: Ledger) -> None:
        """Add what another has counted."""
        self.counts += other.counts
        self.details += other.details

    def tried(self, kind: str | None = None) -> int:
        """Return how many faults were tried, of a kind or in all."""
        return sum(count for (one, _), count in self.counts.items() if kind in (None, one))

    def number(self, outcome: Outcome) -> int:
        """Return how many faults of all kinds had an outcome."""
        return sum(count for (_, one), count in self.counts.items() if one == outcome)

    def table(self) -> str:
        """Return the counts as a table for people, a row for each kind, and all that was not held below it."""
        kinds = sorted({kind for kind, _ in self.counts})
        rows = [(kind, self.tried(kind), *(self.counts[kind, one] for one in OUTCOMES)) for kind in kinds]
        rows.append(("all", self.tried(), *(self.number(one) for one in OUTCOMES)))
        width = max(len(kind) for kind, *_ in rows)
        lines = [f"{'fault':<{width}} {'tried':>6} " + " ".join(f"{one:>9}" for one in OUTCOMES)]
        lines += [f"{kind:<{width}} {tried:>6} " + " ".join(f"{n:>9}" for n in counts) for kind, tried, *counts in rows]
        return "\n".join([*lines, *self.details])

    def check(self) -> None:
        """Print the table, and fail if anything was not held; where ledgers are added up, put it with the others."""
        print(f"\n{self.table()}")
        if folder := os.environ.get(FOLDER):
            self.save(Path(folder))
            return
        assert self.number("held") == self.tried(), self.table()

    def save(self, folder: Path) -> None:
        """Write the counts and details into a file of its own in a folder."""
        counts = [[*key, number] for key, number in self.counts.items()]
        content = json.dumps({"counts": counts, "details": self.details})
        (folder / f"{uuid.uuid4()}.json").write_text(content, encoding="utf-8")

    @classmethod
    def added_up(cls, files: Iterable[Path]) -> Ledger:
        """Return the sum of ledgers that `save` wrote."""
        total = cls()
        for file in sorted(files):
            content = json.loads(file.read_text(encoding="utf-8"))
            for kind, outcome, number in content["counts"]:
                total.counts[kind, outcome] += number
            total.details += content["details"]
        return total
