"""Peak memory and time of scoring a set of samples as the ADM protocol does, at its full size: 50,000 of 256 × 256.

    python benchmarks/evaluation.py

The last line is a JSON object: ``memory``, the peak over 2 GB (the bar is 1), and the ``seconds``. What is measured
and what is not stands in ``docs/performance/data.md``.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, BAR = 256, 2e9


class StandIn(nn.Module):
    """Features of Inception's sizes, and its part that spatial ones are taken from, by one small product each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.Conv2d(3, 192, 1)
        self.pooled, self.logits = nn.Linear(3 * 16 * 16, 2048), nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        small = images[..., ::4, ::4].float() / 255
        self.Mixed_6d.branch1x1(F.adaptive_avg_pool2d(small, 17))
        pooled = self.pooled(F.adaptive_avg_pool2d(small, 16).flatten(1)).relu()
        return pooled, self.logits(pooled)


def write(path: Path, count: int, seed: int) -> None:
    """Images that all differ, without holding more than a few."""
    base = np.random.default_rng(seed).integers(0, 256, (64, SIDE, SIDE, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, SIDE, SIDE, 3)}
        np.lib.format.write_array_header_1_0(member, header)
        for i in range(count):
            member.write((np.roll(base[i % 64], i // 64 * 3, axis=1) // (1 + i % 3)).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--references", type=int, default=10_000)
    arguments = parser.parse_args()
    from rearkit.evaluation import feature_spaces as spaces
    from rearkit.evaluation.features import FeatureCache
    from rearkit.evaluation.score_files import evaluate_files
    from rearkit.evaluation.scores import Scorer

    spaces.create_feature_extractor = lambda *given, **more: StandIn()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "samples.npz", arguments.samples, 0)
        write(folder / "reference.npz", arguments.references, 1)
        started = time.perf_counter()
        scorer = Scorer(spaces.space_of_file(None), 64, 3, "cpu", FeatureCache(folder / "cache"))
        scores = evaluate_files(folder / "samples.npz", folder / "reference.npz", scorer)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counts = f"{arguments.samples} samples, {arguments.references} references"
    print(f"{counts}: {seconds:.0f} s, peak {peak / 2**30:.2f} GiB")
    print(f"FID {scores.fid:.3f}, sFID {scores.sfid:.3f}, precision {scores.precision}, recall {scores.recall}")
    print(json.dumps({"memory": round(peak / BAR, 3), "seconds": round(seconds)}))


if __name__ == "__main__":
    main()
