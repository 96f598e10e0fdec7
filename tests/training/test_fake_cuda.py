"""Training on a stand-in CUDA device, which counts launches, waits and memory, and computes nothing."""

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

FOLDER = Path(__file__).parents[1] / "fake_cuda"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that runs Python on the device."""
    lacking = [tool for tool in ("bash", "g++", "gcc", "nm", "strings") if shutil.which(tool) is None]
    if torch.version.cuda is None or lacking:
        pytest.skip(f"needs a CUDA build of torch and {', '.join(lacking) or 'Linux'}")
    place = tmp_path_factory.mktemp("fake_cuda")
    done = subprocess.run(
        ["bash", str(FOLDER / "build.sh"), sys.executable, str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot be built for this torch: {done.stderr.strip().splitlines()[-1]}")
    return place / "run.sh"


def counted(device: Path, *changes: str) -> dict[str, Any]:
    # Without what DeepSpeed and a process group have left there, which are those of a CPU.
    left = ("DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in left}
    environment |= {"FAKE_ZERO": "1", "FAKE_NOCUDNN": "1", "OMP_NUM_THREADS": "1"}
    command = [str(device), str(FOLDER / "steps.py"), *changes]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# Launches and waits of a step of four blocks, a tenth above what was counted. DeepSpeed's own are four of the waits: it
# looks whether gradients are finite, and clips.
@pytest.mark.parametrize(
    ("changes", "launches", "waits"),
    [
        ((), 1080, 9),
        pytest.param(("train.ema_decay=0.9",), 1080, 9, marks=pytest.mark.slow),
        (("train.micro_batch=4",), 3900, 14),
        (('train.precision="fp32"',), 1030, 11),
        pytest.param(("train.activation_checkpointing=true",), 1300, 9, marks=pytest.mark.slow),
        pytest.param(("train.zero_stage=2",), 2650, 12, marks=pytest.mark.slow),
        pytest.param(('train.precision="bf16-autocast"',), 1400, 12, marks=pytest.mark.slow),
        pytest.param(("train.compile=true",), 1080, 9, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_launches_and_waits_no_more_than_it_did(
    changes: tuple[str, ...], launches: int, waits: int, device: Path
) -> None:
    seen = counted(device, *changes)
    assert seen["refused"] == 0
    assert 0 < seen["launches"] <= launches
    assert seen["waits"] <= waits
    # What else is copied from ordinary memory is a few bytes of DeepSpeed's.
    assert seen["pageable"] <= 2
    if "train.compile=true" not in changes:
        over = 0.3 if any("autocast" in change for change in changes) else 0.1
        assert seen["peak"] / (1 + over) <= seen["planned"] * (1 + 0.1) and seen["planned"] <= seen["peak"] * (1 + over)
