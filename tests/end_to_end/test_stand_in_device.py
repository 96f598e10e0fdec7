"""Whole programs on a stand-in CUDA device, whose numbers are all zero."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stand_in import ROOT, built, run

pytestmark = pytest.mark.slow
CHANGES = (
    'device="cuda"', "train.steps=10", "train.warmup_steps=2", "tokenizer.fit.steps=6", "sample.num_images=20",
    "sample.batch=10", "tokens.min_psnr=0", "tokens.min_codebook_use=0", "tokenizer.fit.min_psnr=0",
    "evaluate.classifier.steps=2", "evaluate.classifier.min_accuracy=0",
)  # fmt: skip


# Kernels write nothing, so logits are what was in their memory before, and need not be numbers.
PROGRAM = """
import runpy, sys
from rearkit.sampling import finite_logits
finite_logits.check_logits = lambda logits: None
sys.argv = sys.argv[1:]
(runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module)(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("fake_cuda"))


def test_the_smoke_recipe_runs_through(device: Path, tmp_path: Path) -> None:
    settings = [f"--set={change}" for change in CHANGES]
    run(device, "-c", PROGRAM, "rearkit", "run", "smoke", "--out", str(tmp_path), *settings)
    # Its scores are of zeros, and may be refused.
    with np.load(tmp_path / "sample" / "samples.npz") as samples:
        assert samples["arr_0"].shape == (20, 32, 32, 3)
    assert (tmp_path / "evaluate").is_dir()


def test_the_benchmark_runs_dry(device: Path, tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "gpu.py")
    printed = run(device, "-c", PROGRAM, script, str(tmp_path), "--dry", "--budget", "3000", timeout=1500)
    # Stage 3 looks at numbers that it has written, and these are not there.
    assert set(json.loads(printed.splitlines()[-1])["failed"]) <= {"losses of six steps, ZeRO 3 against 0, fp32/ERROR"}
