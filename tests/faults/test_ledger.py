from __future__ import annotations

import pytest
from ledger import Ledger

from rearkit.errors import RearkitError


def test_outcomes_are_counted_by_kind_and_all_but_held_ones_are_listed() -> None:
    ledger = Ledger()

    def refuse() -> None:
        raise RearkitError("file: damaged; make it again")

    def fail() -> None:
        raise KeyError("step")

    ledger.attempt("flipped bit", "bit 1 of a", lambda: "held")
    ledger.attempt("flipped bit", "bit 2 of a", lambda: "silent")
    ledger.attempt("cut", "a", refuse)  # type: ignore[arg-type]
    ledger.attempt("cut", "b", fail)  # type: ignore[arg-type]
    header, cut, flipped, total, *details = ledger.table().splitlines()
    assert header.split() == ["fault", "tried", "held", "lost", "silent", "let", "in", "traceback"]
    assert cut.split() == ["cut", "2", "1", "0", "0", "0", "1"]
    assert flipped.split() == ["flipped", "bit", "2", "1", "0", "1", "0", "0"]
    assert total.split() == ["all", "4", "2", "0", "1", "0", "1"]
    assert details == ["silent: flipped bit: bit 2 of a", "traceback: cut: b: KeyError: 'step'"]
    with pytest.raises(AssertionError, match="silent: flipped bit"):
        ledger.check()
