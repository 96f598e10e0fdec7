"""Training and decoding on a stand-in CUDA device, which counts launches, waits and memory, and computes nothing."""

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


def run(device: Path, *arguments: str, **variables: str) -> str:
    """What a program prints on the device."""
    # Without what DeepSpeed and a process group have left there, which are those of a CPU.
    left = ("DS_ACCELERATOR", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in left}
    environment |= {"FAKE_ZERO": "1", "FAKE_NOCUDNN": "1", "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run([str(device), *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    return done.stdout


def counted(device: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    """The JSON that a script of the folder prints."""
    lines = [line for line in run(device, *arguments, **variables).splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


# Launches and waits of a step of four blocks, a tenth above what was counted. DeepSpeed's own are four of the waits: it
# looks whether gradients are finite, and clips.
@pytest.mark.parametrize(
    ("changes", "launches", "waits"),
    [
        ((), 740, 9),
        pytest.param(("train.ema_decay=0.9",), 760, 9, marks=pytest.mark.slow),
        (("train.micro_batch=4",), 3280, 14),
        (('train.precision="fp32"',), 1030, 11),
        pytest.param(("train.activation_checkpointing=true",), 1000, 9, marks=pytest.mark.slow),
        pytest.param(("train.zero_stage=2",), 2650, 12, marks=pytest.mark.slow),
        pytest.param(('train.precision="bf16-autocast"',), 1400, 12, marks=pytest.mark.slow),
        pytest.param(("train.compile=true",), 560, 9, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_launches_and_waits_no_more_than_it_did(
    changes: tuple[str, ...], launches: int, waits: int, device: Path
) -> None:
    seen = counted(device, str(FOLDER / "steps.py"), *changes)
    assert seen["refused"] == 0
    assert 0 < seen["launches"] <= launches
    assert seen["waits"] <= waits
    # What else is copied from ordinary memory is a few bytes of DeepSpeed's.
    assert seen["pageable"] <= 2
    over = 0.3 if any("autocast" in change for change in changes) else 0.1
    assert seen["peak"] / (1 + over) <= seen["planned"] * (1 + 0.1) and seen["planned"] <= seen["peak"] * (1 + over)


@pytest.mark.parametrize(
    ("ranks", "stage", "micro_batch"),
    [(2, 1, 8), pytest.param(2, 2, 4, marks=pytest.mark.slow), pytest.param(4, 1, 4, marks=pytest.mark.slow)],
)
def test_ranks_send_what_is_planned(ranks: int, stage: int, micro_batch: int, device: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    changes = (f"train.zero_stage={stage}", f"train.micro_batch={micro_batch}")
    devices = {"FAKE_GLOO": "1", "FAKE_DEVICES": str(ranks)}
    seen = counted(device, *launcher, str(FOLDER / "steps.py"), *changes, **devices)
    assert seen["refused"] == 0
    planned = seen["messages"]
    assert seen["reduced"] == pytest.approx(planned["reduced"], rel=0.01)
    # Each rank hands over its part of the whole.
    assert seen["gathered"] * ranks == pytest.approx(planned["gathered"], rel=0.01)


# An odd number of kernels more than was counted would be one a layer.
@pytest.mark.parametrize(
    ("backbone", "most"),
    [
        ("dit_ar", 280),
        pytest.param("alitok", 310, marks=pytest.mark.slow),
        pytest.param("llamagen", 170, marks=pytest.mark.slow),
    ],
)
def test_a_step_of_decoding_is_few_kernels_that_are_compiled_once(backbone: str, most: int, device: Path) -> None:
    plugins = [str(path) for path in (ROOT / "plugins").iterdir()]
    seen = counted(device, str(FOLDER / "decode.py"), backbone, PYTHONPATH=os.pathsep.join([str(ROOT), *plugins]))
    assert seen["refused"] == seen["cudnn"] == 0
    assert 0 < seen["kernels"] <= most
    # The queries, the rest of a block, the head: the same for all blocks and positions.
    assert seen["compiled"] == 3
