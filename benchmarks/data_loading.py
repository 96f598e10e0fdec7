"""Token shards against JSON lines: samples per second on one core, and memory.

    python benchmarks/data_loading.py --samples 200000

The last line is a JSON object: ``speed`` (shards over JSON lines; the bar is 10) and ``memory`` (shards over JSON
lines; the bar is 0.1). What was found stands in ``docs/performance/data.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

NUM_TOKENS, CODES, CLASSES, BATCH = 256, 1024, 1000, 256
READERS = ("nothing", "json", "shards")


def order(samples: int):
    import numpy as np

    return np.random.default_rng(0).permutation(samples)


def write(folder: Path, samples: int) -> None:
    """Write the same random samples both ways."""
    import numpy as np

    from rearkit.data.token_writing import write_token_shard

    generator = np.random.default_rng(1)
    tokens = generator.integers(CODES, size=(samples, NUM_TOKENS))
    classes = generator.integers(CLASSES, size=samples)
    with (folder / "tokens.jsonl").open("w") as file:
        for row, label in zip(tokens.tolist(), classes.tolist(), strict=True):
            file.write(json.dumps({"class_id": label, "tokens": row}) + "\n")
    for start in range(0, samples, 100_000):
        part = slice(start, start + 100_000)
        write_token_shard(folder / f"train-{start:09d}.tar", tokens[part], classes[part], {})


def read(reader: str, folder: Path, samples: int) -> dict[str, float]:
    """Read every sample once, in a random order, as (batch, tokens) int64 tensors."""
    import linecache

    import torch

    from rearkit.data.token_shards import TokenData

    indices, total = order(samples), 0
    started = time.perf_counter()
    if reader == "json":
        path = str(folder / "tokens.jsonl")
        for start in range(0, samples, BATCH):
            rows = [json.loads(linecache.getline(path, int(i) + 1)) for i in indices[start : start + BATCH]]
            total += int(torch.tensor([row["tokens"] for row in rows]).sum())
            total += int(torch.tensor([row["class_id"] for row in rows]).sum())
    elif reader == "shards":
        data = TokenData.from_shards(sorted(folder.glob("*.tar")))
        for start in range(0, samples, BATCH):
            tokens, classes = data.take(indices[start : start + BATCH])
            total += int(tokens.sum()) + int(classes.sum())
    seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"seconds": seconds, "peak_mib": int(status["VmHWM"].split()[0]) / 1024, "total": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        print(json.dumps(read(options.reader, options.folder, options.samples)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, options.samples)
        found = {}
        for reader in READERS:
            command = [
                sys.executable,
                __file__,
                f"--reader={reader}",
                f"--folder={folder}",
                f"--samples={options.samples}",
            ]
            found[reader] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["json"]["total"] == found["shards"]["total"], "the readers saw different samples"
    memory = {reader: found[reader]["peak_mib"] - found["nothing"]["peak_mib"] for reader in READERS}
    for reader in READERS[1:]:
        print(f"{reader:>7}: {options.samples / found[reader]['seconds']:12,.0f} samples/s, {memory[reader]:7.1f} MiB")
    speed = found["json"]["seconds"] / found["shards"]["seconds"]
    print(json.dumps({"speed": round(speed, 1), "memory": round(memory["shards"] / memory["json"], 4)}))


if __name__ == "__main__":
    main()
