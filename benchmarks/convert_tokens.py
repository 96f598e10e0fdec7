"""A published token file into token shards: lines per second and memory, beside one process with the standard library.

    python benchmarks/convert_tokens.py                       # 200,000 lines, two shards, about two minutes
    python benchmarks/convert_tokens.py --lines 1281167

The last line is a JSON object: ``speed`` (two processes over the straightforward way; the bar is 5), ``cores`` (the
same of the seconds that all cores were busy, which other work on the machine changes less), ``peak_mb`` (of all
processes together; the bar is 300), ``memory`` (the peak over the straightforward way's) and ``same`` (the shards are
the same bytes). What was found stands in ``docs/performance/data.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

SHARD, MAX_CODES, MAX_CLASSES = 100_000, 2**16, 1000
WAYS = ("straightforward", "rearkit")


def straightforward(source: Path, target: Path) -> None:
    """Convert as rearkit 0.1.0 did: one process, ``json`` and a list of the lists of a shard, through webdataset."""
    import numpy as np
    import webdataset

    target.mkdir()
    length = None
    with source.open(encoding="utf-8") as file:
        lines = enumerate(file, start=1)
        for index in itertools.count():
            chunk = list(itertools.islice(lines, SHARD))
            if not chunk:
                return
            rows = [parse(text) for _, text in chunk]
            length = length or len(rows[0][1])
            for (number, _), (_, tokens) in zip(chunk, rows, strict=True):
                if len(tokens) != length:
                    raise ValueError(f"line {number}: {len(tokens)} tokens, where others have {length}")
            sample = {
                "__key__": "000000",
                "tokens.npy": np.array([tokens for _, tokens in rows]).astype("<u2"),
                "classes.npy": np.array([label for label, _ in rows]).astype("<i4"),
                "json": {"source": source.name},
            }
            with webdataset.TarWriter(str(target / f"train-{index:06d}.tar"), mtime=0) as writer:
                writer.write(sample)


def parse(text: str) -> tuple[int, list[int]]:
    row = json.loads(text)
    label, tokens = int(row["class_id"]), row["tokens"]
    if not all(isinstance(token, int) and 0 <= token < MAX_CODES for token in tokens):
        raise ValueError("a token is out of range")
    return label, tokens


def write_lines(path: Path, lines: int, tokens: int) -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for label, row in zip(
            generator.integers(MAX_CLASSES, size=lines).tolist(),
            (generator.integers(1024, size=tokens).tolist() for _ in range(lines)),
            strict=True,
        ):
            file.write(json.dumps({"class_id": label, "tokens": row}) + "\n")


def measured(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return its seconds, those of all cores, and the most megabytes that all of it had at one time."""
    started, before, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        ended = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.25):
                with contextlib.suppress(psutil.NoSuchProcess):
                    root = psutil.Process(process.pid)
                    peak = max(peak, sum(map(proportional_bytes, [root, *root.children(recursive=True)])))

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        ended.set()
        watcher.join()
    if code:
        raise SystemExit(f"{command} ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak / 1e6


def proportional_bytes(process: psutil.Process) -> int:
    """Return the memory of a process; pages that several share count in parts, so that a sum is what they take."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0  # it has ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--tokens", type=int, default=256, help="of each line")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--straightforward", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.straightforward:
        straightforward(*options.straightforward)
        return
    with tempfile.TemporaryDirectory() as temporary:
        source, targets = Path(temporary, "tokens.jsonl"), {way: Path(temporary, way) for way in WAYS}
        write_lines(source, options.lines, options.tokens)
        python, plain, ours = sys.executable, *map(str, targets.values())
        convert = [python, "-m", "rearkit", "tokens", "--from-jsonl", str(source), "--to", ours]
        seconds, cores, peak = zip(
            measured([python, __file__, "--straightforward", str(source), plain]),
            measured([*convert, "--workers", str(options.workers)]),
            strict=True,
        )
        shards = [[path.read_bytes() for path in sorted(target.glob("*.tar"))] for target in targets.values()]
    for way, took, busy, most in zip(WAYS, seconds, cores, peak, strict=True):
        speed = f"{options.lines / took:10,.0f} lines/s"
        print(f"{way:>15}: {speed}, {took:7.1f} s, {busy:7.1f} s of cores, {most:7.1f} MB")
    result = {
        "speed": round(seconds[0] / seconds[1], 2),
        "cores": round(cores[0] / cores[1], 2),
        "peak_mb": round(peak[1], 1),
        "memory": round(peak[1] / peak[0], 4),
        "same": shards[0] == shards[1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
