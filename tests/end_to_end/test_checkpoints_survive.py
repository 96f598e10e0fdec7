"""Checkpoints outlive kill -9 at any moment and a disk that fills up during a save, through the command line."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rearkit.system.files import sha256

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}  # so that a killed one has spoken
EVERY = 5
KILLS = 20
RECIPE = [
    str(SMOKE),
    *(
        f"--set={setting}"
        for setting in (
            f"train.checkpoint_every={EVERY}", "train.steps=1000000", "train.log_every=1", "train.validate_every=0",
            "train.ema_decay=0.9", "backbone.hidden_size=64", "tokenizer.fit.steps=6", "tokens.min_psnr=0",
            "tokens.min_codebook_use=0", "tokenizer.fit.min_psnr=0",
        )
    ),
]  # fmt: skip


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rearkit", "run", *RECIPE, f"--out={out}"]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def logged(out: Path) -> int:
    log = out / "train" / "log.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    whole = [line for line in lines if line.endswith("}")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_loses_at_most_the_steps_since_a_save(tmp_path: Path) -> None:
    out, moment = tmp_path / "run", random.Random(0)
    folder = out / "train" / "checkpoints"
    least = 0  # what the next process must at least go on from
    in_save = 0
    for kill in range(KILLS + 1):
        process = start(out)
        before = logged(out) if kill else 0
        wait_until(lambda first=before: logged(out) not in (0, first), process)
        wait_until(lambda first=least: logged(out) > first + EVERY, process)
        if kill % 2:  # while it saves
            wait_until(lambda: any(folder.glob(".step-*.tmp")), process)
            time.sleep(moment.uniform(0, 0.02))
        else:
            time.sleep(moment.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        in_save += any(folder.glob(".step-*.tmp"))
        found = re.search(r"going on from step (\d+) of", output)
        assert (int(found[1]) if found else 0) >= least, output
        assert "is skipped" not in output
        last = logged(out)
        least = (last - 1) // EVERY * EVERY  # the save at the last step itself may not have come to its end
    assert in_save >= 3


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    folder = out / "train" / "checkpoints"
    wait_until(lambda: any(folder.glob("step-*")), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    hashes = {path: sha256(path) for path in folder.rglob("*") if path.is_file()}
    command = ["-m", "rearkit", "run", *RECIPE, f"--out={out}"]
    limited = f"ulimit -f 200; exec {sys.executable} {' '.join(command)}"  # files of 200 KiB at most
    done = subprocess.run(["bash", "-c", limited], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stdout + done.stderr
    assert re.search(r"error: .*/checkpoints/step-\d+: the disk is full, or a quota is used up", done.stderr)
    assert "Traceback" not in done.stderr
    assert hashes == {path: sha256(path) for path in folder.rglob("*") if path.is_file()}
    saved = max(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    process = start(out)
    assert process.stdout is not None
    assert any(f"going on from step {saved} of" in line for line in process.stdout)
    process.kill()
    process.communicate()
