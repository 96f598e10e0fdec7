"""Training and decoding on a stand-in CUDA device, which counts launches, waits and memory, and computes nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stand_in import FOLDER, ROOT, built, counted


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("fake_cuda"))


# Launches and waits of a step of four blocks, a tenth above what was counted. DeepSpeed's own are four of the waits: it
# looks whether gradients are finite, and clips.
@pytest.mark.parametrize(
    ("changes", "launches", "waits"),
    [
        ((), 740, 9),
        pytest.param(("train.ema_decay=0.9",), 760, 9, marks=pytest.mark.slow),
        pytest.param(("train.micro_batch=4",), 3280, 14, marks=pytest.mark.slow),
        pytest.param(('train.precision="fp32"',), 1030, 11, marks=pytest.mark.slow),
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


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "stage", "micro_batch"), [(2, 1, 8), (2, 2, 4), (4, 1, 4)])
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


@pytest.mark.slow
def test_a_rank_that_sees_only_its_own_device_takes_it(device: Path) -> None:
    # Not stage 3, which now and then looks at numbers that it has written, and these are not there.
    lone = {"FAKE_DEVICES": "1", "LOCAL_RANK": "1"}
    assert counted(device, str(FOLDER / "steps.py"), "train.zero_stage=1", **lone)["refused"] == 0


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
