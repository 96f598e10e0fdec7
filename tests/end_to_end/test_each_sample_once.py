"""Every sample of an epoch is seen once, across ranks, micro-batches and resumes in mid-epoch on other ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "record_samples.py"
SAMPLES, GLOBAL_BATCH, STEPS = 62, 12, 31  # as in the script: six epochs, whose ends lie within steps


def run(folder: Path, ranks: int, micro_batch: int, stop: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder), str(micro_batch), str(stop)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "parts",
    [
        [(2, 3, 9), (1, 4, 0)],  # ranks, micro-batch, step at which SIGTERM comes
        pytest.param([(1, 12, 8), (2, 6, 20), (3, 2, 0)], marks=pytest.mark.slow),
    ],
    ids=["two ranks, then one", "one rank, then two, then three"],
)
def test_each_epoch_is_a_permutation(parts: list[tuple[int, int, int]], tmp_path: Path) -> None:
    for part in parts:
        run(tmp_path, *part)
    lines = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == set(range(STEPS))
    starts = [0, *(stop for _, _, stop in parts[:-1]), STEPS]
    for (ranks, micro_batch, _), first, last in zip(parts, starts, starts[1:], strict=False):
        here = [line for line in lines if first <= line["step"] < last]
        assert {line["rank"] for line in here} == set(range(ranks))
        assert {len(line["samples"]) for line in here} == {micro_batch}
        assert len(here) == (last - first) * GLOBAL_BATCH // micro_batch  # no step was taken twice, none left out
    lines.sort(key=lambda line: (line["step"], line["rank"]))  # stable: a rank's micro-batches are in order
    seen = [sample for line in lines for sample in line["samples"]]
    epochs = [seen[start : start + SAMPLES] for start in range(0, len(seen), SAMPLES)]
    assert len(epochs) == 6
    for epoch in epochs:
        assert sorted(epoch) == list(range(SAMPLES))
    assert len({tuple(epoch) for epoch in epochs}) == 6  # and each in an order of its own
