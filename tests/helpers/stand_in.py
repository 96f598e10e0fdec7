"""A stand-in CUDA device for tests; see tests/fake_cuda/README.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "fake_cuda"


def built(place: Path) -> Path:
    """Build the device in a folder, and return the program that runs Python on it; skip the test where it cannot be."""
    lacking = [tool for tool in ("bash", "g++", "gcc", "nm", "strings") if shutil.which(tool) is None]
    if torch.version.cuda is None or lacking:
        pytest.skip(f"needs a CUDA build of torch and {', '.join(lacking) or 'Linux'}")
    done = subprocess.run(
        ["bash", str(FOLDER / "build.sh"), sys.executable, str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot be built for this torch: {done.stderr.strip().splitlines()[-1]}")
    return place / "run.sh"


def run(device: Path, *arguments: str, timeout: float = 300, **variables: str) -> str:
    """Return what a program prints on the device."""
    # Without what DeepSpeed and a process group have left there, which are those of a CPU.
    left = ("DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in left}
    environment |= {"FAKE_ZERO": "1", "FAKE_NOCUDNN": "1", "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run([str(device), *arguments], env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.stdout, done.stderr
    return done.stdout


def counted(device: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    """Return the JSON that a script of the folder prints."""
    lines = [line for line in run(device, *arguments, **variables).splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found
