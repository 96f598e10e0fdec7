"""Ctrl-C and SIGTERM at seeded random moments of a command, from its first import to its end.

The number of signals to each command in the slow tests is that of REARKIT_TRIALS.
"""

from __future__ import annotations

import json
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

from rearkit.system.files import sha256

TRIALS = int(os.environ.get("REARKIT_TRIALS", "20"))
# In arguments, the number of the trial: what one has finished is nothing for the next to do.
NUMBER = "NUMBER"
SWEEP = f"""
name = "two"
recipe = "{SMOKE}"
[variants.both]
[variants.plain]
noise.name = "none"
regularizers = []
"""


def trials(arguments: list[str], seconds: float, count: int, folder: Path | None = None) -> list[Outcome]:
    """Stop a command that takes so many seconds as often as that; return what came of each time."""
    moments = random.Random(" ".join(arguments[:1]))
    numbers = [moments.choice(list(CODES)) for _ in range(count)]
    return [
        stopped([one.replace(NUMBER, str(trial)) for one in arguments], number, moments.uniform(0, seconds), folder)
        for trial, number in enumerate(numbers)
    ]


def check(command: str, outcomes: list[Outcome]) -> None:
    """Count what came of signals to a command; one that came after its end was none."""
    print(dict(Counter(outcome.kind for outcome in outcomes)))
    ledger = Ledger()
    for each in outcomes:
        if each.kind != "done":
            ledger.add(f"signal, {command}", "held" if each.held else "traceback", f"{each.kind}: {each.told}")
    ledger.check()


def rearkit(*arguments: str) -> float:
    """Run a command to its end; return how many seconds it took."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "rearkit", *arguments], env=ENVIRONMENT, check=True, capture_output=True)
    return time.monotonic() - started


def test_a_signal_to_a_short_command_gives_a_line_and_a_code() -> None:
    check("recipes", trials(["recipes"], 0.4, 6))


def test_little_is_imported_before_signals_are_handled() -> None:
    script = "import sys; before = set(sys.modules); import rearkit.system.signals; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"rearkit", "rearkit.system", "rearkit.system.signals", "signal",
                                        "rearkit.system.ranks", "importlib",
                                        "importlib._bootstrap", "importlib._bootstrap_external", "warnings",
                                        "_signal", "enum", "types", "operator", "_operator", "functools",
                                        "collections", "keyword", "itertools", "reprlib"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "show", "plan", "version"])
def test_a_signal_at_any_moment_of_a_command_without_a_run(command: str, tmp_path: Path) -> None:
    arguments = [command, *([str(SMOKE)] if command in ("show", "plan") else [])]
    check(command, trials(arguments, rearkit(*arguments), TRIALS, tmp_path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, rearkit(*run(out))


def run(out: Path) -> list[str]:
    return ["run", str(SMOKE), *TINY, f"--out={out}"]


@pytest.mark.slow
def test_a_run_stopped_at_any_moment_goes_on_to_the_same_bits(whole: tuple[Path, float], tmp_path: Path) -> None:
    expected, seconds = whole
    out = tmp_path / "run"
    check("run", trials(run(out), seconds / 2, TRIALS))
    rearkit(*run(out))
    assert results(out) == results(expected) and len(results(out)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "evaluate", "diagnose", "export"])
def test_a_signal_at_any_moment_of_a_command_on_a_run(name: str, whole: tuple[Path, float], tmp_path: Path) -> None:
    out, _ = whole
    arguments = {
        "sample": ["sample", str(SMOKE), *TINY, f"--out={out}"],
        "evaluate": ["evaluate", str(SMOKE), *TINY, f"--out={out}"],
        "diagnose": ["diagnose", str(out)],
        "export": ["export", str(out), str(tmp_path / f"model-{NUMBER}")],
    }[name]
    check(name, trials(arguments, 8, TRIALS, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "data", "tokens"])
def test_a_conversion_stopped_at_any_moment_goes_on_to_the_same_bytes(
    name: str, whole: tuple[Path, float], tmp_path: Path
) -> None:
    lines, draw = tmp_path / "tokens.jsonl", random.Random(0)
    row = json.dumps([draw.randrange(1024) for _ in range(64)])
    # Of several shards, the first of which are there when the signal comes.
    lines.write_text("".join(f'{{"class_id": {index % 1000}, "tokens": {row}}}\n' for index in range(250_000)))
    images = next((whole[0] / "data").glob("train-*.tar"))

    def arguments(target: Path) -> list[str]:
        return {
            "convert": ["convert", str(whole[0] / "train/model.safetensors"), str(target / "x.pt"), "--to=published"],
            "data": ["data", "--from-folder", str(images), f"--to={target}", "--shard-size=5", "--unlabelled"],
            "tokens": ["tokens", "--from-jsonl", str(lines), f"--to={target}", "--workers=2"],
        }[name]

    def written(target: Path) -> dict[str, str]:
        return {path.name: sha256(path) for path in sorted(target.glob("*.*")) if path.suffix in (".tar", ".pt")}

    (tmp_path / "expected").mkdir()
    seconds = rearkit(*arguments(tmp_path / "expected"))
    expected, target = written(tmp_path / "expected"), tmp_path / "target"
    target.mkdir()
    check(name, trials(arguments(target), seconds, TRIALS, tmp_path))
    assert written(target).items() <= expected.items()
    rearkit(*arguments(target))
    assert written(target) == expected and expected
    assert not [path for path in target.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.slow
def test_a_sweep_stopped_at_any_moment_stops_its_runs_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    file, out = tmp_path / "two.toml", tmp_path / "runs"
    file.write_text(SWEEP)
    seconds = rearkit("sweep", str(file), *TINY, f"--out={tmp_path / 'expected'}", "--jobs=2")
    check("sweep", trials(["sweep", str(file), *TINY, f"--out={out}", "--jobs=2"], seconds / 2, TRIALS))
    # A run of its own session would go on beside the next sweep's.
    listed = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(out) not in listed
    rearkit("sweep", str(file), *TINY, f"--out={out}", "--jobs=2")
    for run in ("both-s0", "plain-s0"):
        assert results(out / run) == results(tmp_path / "expected" / run) and len(results(out / run)) > 5
