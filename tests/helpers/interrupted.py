"""A command that is stopped or killed at some moment, and what came of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs

from rearkit.system.files import sha256

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
# Seconds in which a command has to end after a signal.
PROMISED_S = 10.0


@attrs.frozen
class Outcome:
    """What came of one signal.

    Attributes:
        kind: held, done (the command had ended before), or what is wrong: traceback, code, lines, late.
        told: code, seconds and what the command printed to stderr.
    """

    kind: str
    told: str

    @property
    def held(self) -> bool:
        return self.kind in ("held", "done")


def stopped(arguments: list[str], number: signal.Signals, after: float, folder: Path | None = None) -> Outcome:
    """Send a signal to ``python -m rearkit ARGUMENTS`` so long after it can handle one, and judge what it did."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rearkit", *arguments],
        env=ENVIRONMENT, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not handles(process.pid, number):
        time.sleep(0.001)
    deadline = time.monotonic() + after
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    sent = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    seconds = time.monotonic() - sent
    lines = [line for line in said.splitlines() if line.strip()]
    told = f"{number.name} after {after:.3f} s: code {process.returncode} in {seconds:.1f} s: {said}"
    if "Traceback" in said or "Exception ignored" in said:
        return Outcome("traceback", told)
    # It may have been about to end.
    if process.returncode == 0 and not [line for line in lines if line.startswith("error")]:
        return Outcome("done", told)
    if process.returncode != CODES[number]:
        return Outcome("code", told)
    if len(lines) != 1 or "error: " not in lines[0]:
        return Outcome("lines", told)
    return Outcome("held" if seconds < PROMISED_S else "late", told)


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal; before that, Python itself is starting."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), "0")
    # SIGINT is caught by Python, too, before there is a handler of ours; SIGTERM is not.
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def results(out: Path) -> dict[str, str]:
    """Digests of what a run is for: tokenizer, tokens, weights, samples, scores."""
    paths = [*out.glob("*/*.safetensors"), *out.glob("tokens/*.tar"), *out.glob("s*/*.npz"), out / "scores.json"]
    return {str(path.relative_to(out)): sha256(path) for path in sorted(paths) if path.is_file()}


def alive(pid: int) -> bool:
    # An orphan that has ended may stay a zombie, where nobody collects it.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
