"""The smoke recipe, small, run by the command line in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.toml"
TINY = [
    f"--set={setting}"
    for setting in (
        "train.steps=50", "train.warmup_steps=5", "train.log_every=1", "train.validate_every=0",
        "train.checkpoint_every=20", "train.keep_checkpoints=9",
        "tokenizer.fit.steps=6", "sample.num_images=20", "evaluate.classifier.steps=2",
        "tokens.min_psnr=0", "tokens.min_codebook_use=0", "tokenizer.fit.min_psnr=0",
        "evaluate.classifier.min_accuracy=0",
    )
]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def rearkit(*arguments: str, launcher: tuple[str, ...] = (sys.executable, "-m", "rearkit")) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, *arguments], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], code: int = 0, timeout: float = 120) -> str:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == code, output
    return output


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(text) for text in listed.split()]


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]
