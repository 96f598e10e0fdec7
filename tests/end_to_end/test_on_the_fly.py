"""Tokens made while training, through the command line: one rank and two, a kill in mid-epoch, and what is cached."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_runs import children

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"
TINY = [
    f"--set={setting}"
    for setting in (
        "tokens.on_the_fly=true", "tokens.augment='random-crop'", "tokens.shuffle_shards=2", "tokens.workers=1",
        "train.steps=30", "train.warmup_steps=5", "train.log_every=1", "train.validate_every=0",
        "train.checkpoint_every=5", "tokenizer.fit.steps=6", "tokens.min_psnr=0", "tokens.min_codebook_use=0",
        "tokenizer.fit.min_psnr=0",
    )
]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rearkit", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


def rearkit(stage: str, out: Path, *options: str, code: int = 0) -> str:
    return finish(start(stage, str(SMOKE), *TINY, f"--out={out}", *options), code)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages up to the tokens are done."""
    out = tmp_path_factory.mktemp("on-the-fly") / "run"
    rearkit("data", out)
    rearkit("tokenizer", out)
    output = rearkit("tokens", out)
    assert "400 training images, to be tokenized while training" in output
    assert "dB PSNR of 50 held-out images" in output and "codes in use" in output
    assert not list((out / "tokens").glob("train-*.tar"))
    assert list((out / "tokens").glob("held-out-*.tar"))
    return out


def copied(prepared: Path, name: str) -> Path:
    return Path(shutil.copytree(prepared, prepared.with_name(name)))


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "train" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    return [line["loss"] for line in lines]


def at_step(step: int, out: Path) -> subprocess.Popen[str]:
    """Let two ranks train until they have saved at a step."""
    process = start("train", str(SMOKE), *TINY, f"--out={out}", "--num-gpus=2")
    deadline = time.monotonic() + 200
    while not (out / "train" / "checkpoints" / f"step-{step:08d}").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_two_ranks_train_as_one_and_a_killed_run_ends_as_if_it_had_not_been(prepared: Path) -> None:
    one, two = copied(prepared, "one"), copied(prepared, "two")
    assert "held-out cross-entropy" in rearkit("train", one)
    assert "train: up to date" in rearkit("train", one)
    process = at_step(5, two)
    process.terminate()  # which reaches the processes that read, too
    assert "saved; run the same command to go on" in finish(process, 75)
    process = at_step(15, two)  # an epoch is 25 steps
    for rank in children(process.pid):
        os.kill(rank, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert "going on from step" in rearkit("train", two, "--num-gpus=2")
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
