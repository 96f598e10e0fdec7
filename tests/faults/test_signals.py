"""Ctrl-C and SIGTERM at seeded random moments of a command, from its first import to its end.

The number of signals to each command in the slow tests is that of REARKIT_TRIALS.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from interrupted import CODES, ENVIRONMENT, Outcome, results, stopped
from ledger import Ledger
from rank_runs import SMOKE, TINY

TRIALS = int(os.environ.get("REARKIT_TRIALS", "20"))


def sweep(arguments: list[str], seconds: float, trials: int, folder: Path | None = None) -> list[Outcome]:
    """Stop a command that takes so many seconds as often as that; return what came of each time."""
    moments = random.Random(" ".join(arguments[:1]))
    numbers = [moments.choice(list(CODES)) for _ in range(trials)]
    return [stopped(arguments, number, moments.uniform(0, seconds), folder) for number in numbers]


def check(command: str, outcomes: list[Outcome]) -> None:
    """Count what came of signals to a command; one that came after its end was none."""
    print(dict(Counter(outcome.kind for outcome in outcomes)))
    ledger = Ledger()
    for each in outcomes:
        if each.kind != "done":
            ledger.add(f"signal, {command}", "held" if each.held else "traceback", f"{each.kind}: {each.told}")
    ledger.check()


def test_a_signal_to_a_short_command_gives_a_line_and_a_code() -> None:
    check("recipes", sweep(["recipes"], 0.4, 6))


def test_little_is_imported_before_signals_are_handled() -> None:
    script = "import sys; before = set(sys.modules); import rearkit.system.signals; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"rearkit", "rearkit.system", "rearkit.system.signals", "signal", "importlib",
                                        "importlib._bootstrap", "importlib._bootstrap_external", "warnings",
                                        "_signal", "enum", "types", "operator", "_operator", "functools",
                                        "collections", "keyword", "itertools", "reprlib"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "show", "plan", "version"])
def test_a_signal_at_any_moment_of_a_command_without_a_run(command: str, tmp_path: Path) -> None:
    arguments = [command, *([str(SMOKE)] if command in ("show", "plan") else [])]
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "rearkit", *arguments], env=ENVIRONMENT, check=True, capture_output=True)
    check(command, sweep(arguments, time.monotonic() - started, TRIALS, tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing disturbed, and how long it took."""
    out, started = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    subprocess.run(command(out), env=ENVIRONMENT, check=True, capture_output=True)
    return out, time.monotonic() - started


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "rearkit", "run", str(SMOKE), *TINY, f"--out={out}"]


@pytest.mark.slow
def test_a_run_stopped_at_any_moment_goes_on_to_the_same_bits(whole: tuple[Path, float], tmp_path: Path) -> None:
    expected, seconds = whole
    out = tmp_path / "run"
    check("run", sweep(command(out)[3:], seconds / 2, TRIALS))
    subprocess.run(command(out), env=ENVIRONMENT, check=True, capture_output=True)
    assert results(out) == results(expected) and len(results(out)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "evaluate", "diagnose", "export"])
def test_a_signal_at_any_moment_of_a_command_on_a_run(name: str, whole: tuple[Path, float], tmp_path: Path) -> None:
    out, _ = whole
    arguments = {
        "sample": ["sample", str(SMOKE), *TINY, f"--out={out}"],
        "evaluate": ["evaluate", str(SMOKE), *TINY, f"--out={out}"],
        "diagnose": ["diagnose", str(out)],
        "export": ["export", str(out), str(tmp_path / "model")],
    }[name]
    check(name, sweep(arguments, 8, TRIALS, tmp_path))
