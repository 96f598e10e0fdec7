"""Samples that cannot be used: counted and logged by shard, key and reason; too many of them stop the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rearkit.errors import DataError
from rearkit.system.files import storage_errors

PATIENCE = 100  # bad samples are judged against at least so many, so that one early one does not stop a run
LOST, UNFETCHED = "lost with a damaged, truncated or empty shard", "lost with a shard that could not be fetched"


class Unusable(DataError):
    """A sample cannot be used; the message is a reason, for `BadSamples`."""


class BadSamples:
    """Counts what had to be skipped.

    Args:
        max_share: largest share of ``expected`` samples that may be skipped.
        expected: how many samples the shards should hold; 0 where nobody knows.
        log: file to which each skip is appended as a JSON line, once however often the shard is read.
    """

    def __init__(self, max_share: float, expected: int, log: Path | None = None) -> None:
        self.max_share, self.expected, self.log = max_share, expected, log
        self.reasons: Counter[str] = Counter()
        self.good = 0
        self._elsewhere: Counter[str] = Counter()
        self._good_elsewhere = 0
        self._logged: set[str] = set()
        if log is not None and log.is_file():
            self._logged.update(log.read_text(encoding="utf-8").splitlines())

    @property
    def count(self) -> int:
        """How many samples were skipped, here and elsewhere."""
        return sum(self.reasons.values()) + sum(self._elsewhere.values())

    def hear(self, reasons: Mapping[str, int], good: int) -> None:
        """Take into account what another rank, or an earlier run, has counted; `reasons` and `good` stay our own."""
        self._elsewhere.update(reasons)
        self._good_elsewhere += good

    def skip(self, where: str, reason: str, samples: int = 1) -> None:
        """Count ``samples`` as skipped.

        Raises:
            DataError: that is more than the limit.
        """
        if samples < 1:
            return
        self.reasons[reason] += samples
        self._note(json.dumps({"where": where, "reason": reason, "samples": samples}))
        self.judge(f"{where}: {reason}")

    def judge(self, told: str) -> None:
        """Compare the count with the limit.

        Args:
            told: what an error begins with.

        Raises:
            DataError: more was skipped than may be.
        """
        seen = self.good + self._good_elsewhere + self.count
        if self.count > self.max_share * max(self.expected, seen, PATIENCE):
            counts = (self.reasons + self._elsewhere).most_common()
            listed = ", ".join(f"{count} × {text}" for text, count in counts)
            raise DataError(
                f"{told}; {self.count} samples skipped ({listed}), more than the {self.max_share:.1%} that "
                f"[data] max_bad_share allows" + (f"; all are listed in {self.log}" if self.log else "")
            )

    def _note(self, line: str) -> None:
        if self.log is None or line in self._logged:
            return
        self._logged.add(line)
        with storage_errors(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
