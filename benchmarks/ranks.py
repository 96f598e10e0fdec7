"""How much faster the stages `tokens` and `evaluate` are on two ranks than on one, on a machine of two cores.

    python benchmarks/ranks.py

Each rank is a process with one thread. `tokens` reads JPEGs of photographs' size from shards and writes token shards;
`evaluate` scores samples, training and held-out images and a tokenizer's reconstructions with a network of the size of
Inception-v3 and random weights. Its features are taken from narrow layers, so that Fréchet distances, which one rank
computes whatever the number of images, do not hide what is shared out. The start of processes is left out.

Where others use the cores too, seconds by the clock say little. So the time of a run is also taken as that of the
processor, of the rank that had most of it: what the clock would show with a core for each rank and files that are at
hand. The last line is a JSON object, medians over the rounds: for ``tokens`` and ``evaluate`` the speed on two ranks
over that on one by the processor's time (the bars are 1.7 and 1.5), for ``tokens_clock`` and ``evaluate_clock`` by the
clock, and ``same``: whether files and scores were the same bytes. What was found stands in
``docs/performance/data.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import attrs
import numpy as np
import torch
from PIL import Image

SIZE, SHARDS, EACH = 64, 16, 32
SCORED = {"samples": 24, "train": 24, "held-out": 24}
RECIPE = {
    "name": "ranks", "device": "cpu", "data": {"source": {"name": "mnist-5k"}},
    "tokenizer": {
        "name": "maskgit-vqgan", "image_size": SIZE, "hidden_channels": 16, "channel_mult": [1, 1, 2, 2],
        "num_res_blocks": 1, "norm_groups": 8, "codebook_size": 256, "embedding_dim": 16,
    },
    "backbone": {"name": "dit-ar"}, "train": {"steps": 1, "global_batch": 1}, "sample": {"num_images": 1},
}  # fmt: skip


def write_shards(place: Path) -> None:
    """Smooth noise as JPEGs of 500 × 375 pixels."""
    random = np.random.default_rng(0)
    for number in range(SHARDS):
        with tarfile.open(place / f"{number:02d}.tar", "w") as archive:
            for index in range(EACH):
                coarse = Image.fromarray(random.integers(256, size=(24, 32, 3), dtype=np.uint8))
                buffer = io.BytesIO()
                coarse.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, format="jpeg", quality=90)
                for suffix, content in (("cls", b"0"), ("jpg", buffer.getvalue())):
                    info = tarfile.TarInfo(f"{index:03d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def write_weights(path: Path) -> None:
    """Random weights in the layout that torch-fidelity reads."""
    from unittest import mock

    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"), mock.patch.object(torch, "load"):
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), path)


def tokens(place: Path, out: Path) -> tuple[float, float, str]:
    """Write token shards; return the seconds by the clock and by the processor, and a hash of the files."""
    from rearkit import load_recipe
    from rearkit.data.decoding import Decoding
    from rearkit.data.image_sets import Split
    from rearkit.model import build_tokenizer
    from rearkit.system import distributed
    from rearkit.tokenization.by_rank import write_token_shards
    from rearkit.tokenization.tokenize import tokenize

    tokenizer = build_tokenizer(load_recipe(RECIPE), load=False).eval()
    shards = {str(path): EACH for path in sorted(place.glob("*.tar"))}
    split = Split(name="train", shards=shards, num_classes=1, decoding=Decoding(SIZE))
    # What is imported and packed at first use is part of the start.
    tokenize(tokenizer, attrs.evolve(split, shards=dict([*shards.items()][:1])).all())
    distributed.barrier()
    started = time.perf_counter(), time.process_time()
    names, _ = write_token_shards(tokenizer, split, "none", 32, out)
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    return *seconds, hashlib.sha256(b"".join((out / name).read_bytes() for name in names)).hexdigest()


def evaluate(place: Path, out: Path) -> tuple[float, float, str]:
    """Score; return the seconds by the clock and by the processor, and a hash of the scores."""
    from rearkit import load_recipe
    from rearkit.evaluation.feature_spaces import inception_space
    from rearkit.evaluation.features import FeatureCache
    from rearkit.evaluation.image_streams import MemoryImages
    from rearkit.evaluation.material import Material
    from rearkit.evaluation.score_on_ranks import score_on_ranks
    from rearkit.evaluation.scores import Scorer
    from rearkit.model import build_tokenizer
    from rearkit.system import distributed

    space = attrs.evolve(
        inception_space(str(place / "weights.pth")),
        features="192",
        spatial="Mixed_7b.branch1x1",
        extractor="inception-v3-compat",
    )
    tokenizer = build_tokenizer(load_recipe(RECIPE), load=False).eval()
    generator = torch.Generator().manual_seed(0)
    sets = {
        name: MemoryImages(torch.randint(256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator))
        for name, count in SCORED.items()
    }
    material = Material(sets["samples"], train=sets["train"], held_out=sets["held-out"], tokenizer=tokenizer)
    scorer = Scorer(space, 4, 3, "cpu", FeatureCache(out / "cache"))
    # What is imported at first use is part of the start.
    few = MemoryImages(sets["train"].images[:8])
    scorer.rebuild(tokenizer, few, scorer.extract(few, "few"), "few")
    distributed.barrier()
    started = time.perf_counter(), time.process_time()
    scores = score_on_ranks(scorer, material, out / "shares")
    seconds = time.perf_counter() - started[0], time.process_time() - started[1]
    return *seconds, hashlib.sha256(json.dumps(attrs.asdict(scores)).encode()).hexdigest()


WORK = {"tokens": tokens, "evaluate": evaluate}
IMAGES = {"tokens": SHARDS * EACH, "evaluate": sum(SCORED.values()) + SCORED["held-out"]}


def rank(work: str, place: Path, out: Path) -> None:
    """What each rank does."""
    from rearkit.system import distributed

    distributed.start(torch.device("cpu"))
    torch.manual_seed(0)
    found = WORK[work](place, out)
    print(json.dumps(found))
    distributed.leave()


def run(work: str, number: int, place: Path) -> tuple[float, float, str]:
    """Do some work on a number of ranks; return the longest times and the hash."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    with tempfile.TemporaryDirectory() as out:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank-of", work, str(place), out],
                env=os.environ
                | address
                | {"RANK": str(index), "WORLD_SIZE": str(number), "LOCAL_RANK": str(index), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(number)
        ]
        outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit(f"{work}: a rank failed")
    clock, processor, digests = zip(*(json.loads(output.splitlines()[-1]) for output in outputs), strict=True)
    return max(clock), max(processor), digests[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="one rank, then two, so many times")
    parser.add_argument("--only", choices=tuple(WORK), help="measure this alone")
    parser.add_argument("--rank-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        work, place, out = arguments.rank_of
        rank(work, Path(place), Path(out))
        return
    result: dict[str, object] = {}
    same = True
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_shards(place)
        write_weights(place / "weights.pth")
        for work in WORK if arguments.only is None else (arguments.only,):
            ratios: dict[str, list[float]] = {f"{work}_clock": [], work: []}
            for _ in range(arguments.rounds):
                *one, first = run(work, 1, place)
                *two, second = run(work, 2, place)
                same = same and first == second
                for key, alone, both in zip(ratios, one, two, strict=True):
                    ratios[key].append(alone / both)
                    speeds = " and ".join(f"{IMAGES[work] / seconds:.1f}" for seconds in (alone, both))
                    print(f"{key}: {speeds} images/s on one and two ranks: {ratios[key][-1]:.2f}", flush=True)
            result |= {key: round(statistics.median(found), 2) for key, found in ratios.items()}
    print(json.dumps({**result, "same": same}))


if __name__ == "__main__":
    main()
