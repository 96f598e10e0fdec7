"""The harness itself: its faults come back by their seed, it sees what is let in, and its bars hold."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from count_faults import missed
from fuzzing import Case, command, damaged, fuzz
from ledger import FOLDER, Ledger, Outcome

from rearkit.errors import DataError


def counted(place: Path, work: object) -> Ledger:
    ledger = Ledger()

    def build(draw: random.Random, folder: Path) -> Case:
        return f"{draw.random()}", lambda: work(folder)  # type: ignore[operator, no-any-return]

    fuzz(ledger, "kind", place, build)
    return ledger


def test_what_is_started_or_written_elsewhere_is_let_in(tmp_path: Path) -> None:
    def starts(folder: Path) -> Outcome:
        subprocess.run(["true"], check=True)
        return "held"

    def writes(folder: Path) -> Outcome:
        (tmp_path / "elsewhere").write_text("x")
        return "held"

    def prints(folder: Path) -> Outcome:
        print("\x1b[31m")
        raise DataError("no")

    def stays(folder: Path) -> Outcome:
        Path("here").write_text("x")
        raise DataError("no")

    def fails(folder: Path) -> Outcome:
        raise KeyError("x")

    for work, outcome in (
        (starts, "let in"),
        (writes, "let in"),
        (prints, "let in"),
        (stays, "held"),
        (fails, "traceback"),
    ):
        ledger = counted(tmp_path / work.__name__, work)
        assert ledger.number(outcome) == ledger.tried() == 3, ledger.table()


def test_the_same_seed_gives_the_same_damage() -> None:
    content = bytes(range(256)) * 4
    found = [[damaged(random.Random(seed), content) for seed in range(50)] for _ in range(2)]
    assert found[0] == found[1]
    assert len({how.split()[0] for how, _ in found[0]}) == 8


def test_the_command_line_ends_with_its_code_and_what_it_says() -> None:
    code, said = command("show", "nosuch")
    assert code == 2 and said.startswith("error: nosuch: no such recipe")


def test_ledgers_are_added_up_and_their_bars_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for number, outcome in ((2480, "held"), (20, "traceback")):
        ledger = Ledger()
        for _ in range(number):
            ledger.add("kind", outcome, "x")  # type: ignore[arg-type]
        ledger.check()
    total = Ledger.added_up(tmp_path.glob("*.json"))
    assert (total.tried(), total.number("traceback"), len(total.details)) == (2500, 20, 20)
    assert missed(total) == []
    total.counts["kind", "held"] -= 600
    assert missed(total) == ["only 1900 faults, fewer than 2,500", "20 tracebacks, more than 1%"]
    total.add("kind", "let in")
    assert missed(total)[0] == "1 let in"
