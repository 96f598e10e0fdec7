"""Train some steps on the stand-in device, and print what it counted of the last one: run by a test.

run.sh steps.py [KEY=VALUE ...]
"""

from __future__ import annotations

import ctypes
import json
import sys

import attrs
import numpy as np
import torch

from rearkit.contracts import Classes, num_parameters
from rearkit.data.token_shards import TokenData
from rearkit.model import build, build_tokenizer
from rearkit.planning.machine import Machine
from rearkit.planning.measure import parameter_counts
from rearkit.planning.micro_batch import by_stage
from rearkit.planning.scaling import messages
from rearkit.recipe.loading import load_recipe
from rearkit.system.distributed import rank, world_size
from rearkit.training.trainer import Trainer

BATCH = 16
CHANGES = (
    'device="cuda"', "backbone.num_layers=4", "train.steps=99", "train.warmup_steps=1", "train.log_every=99",
    f"train.global_batch={BATCH}", "train.trackers.tensorboard=false", "regularizers.0.decode_layer=3",
    "train.compile=false",
)  # fmt: skip


def main(changes: list[str]) -> None:
    """Take three steps, of which the first compiles and allocates."""
    counter = ctypes.CDLL(None)
    recipe = load_recipe("rear_s_maskgit", [*CHANGES, *changes])
    model = build(recipe, build_tokenizer(recipe, load=False), Classes(1000))
    shape = (64, model.space.num_tokens)
    data = TokenData.from_arrays(np.zeros(shape, np.int64), np.zeros(len(shape), np.int64).repeat(32))
    trainer = Trainer(model, data, None, None)
    counts = parameter_counts(recipe)
    machine = Machine(world_size(), 79 * 2.0**30, 1.0, 1.0)
    planned = by_stage(recipe, machine, trainer.engine.micro_batch, counts)[recipe.train.zero_stage].total
    with trainer:
        for _ in range(3):
            counter.fake_reset()
            trainer.report(trainer.step(trainer.next_samples()))
            names = {"launches": b"k:", "waits": b"sync:", "pageable": b"copy:H2D:pageable", "refused": b"ERROR:"}
            # What each rank hands to NCCL, in bytes.
            sizes = {"reduced": b"nccl:allreduce", "gathered": b"nccl:allgather"}
            seen = {name: counter.fake_count(prefix) for name, prefix in names.items()}
            seen |= {name: counter.fake_bytes(prefix) for name, prefix in sizes.items()}
            # The optimizer's count of steps is a host pointer by DeepSpeed's own AdamW; GPUs take it.
            seen["refused"] -= counter.fake_count(b"ERROR:fused optimizer")
        seen["messages"] = attrs.asdict(messages(recipe, counts.trained, trainer.engine.accumulation))
        peak = torch.cuda.max_memory_allocated()
        if rank() == 0:
            print(json.dumps(seen | {"peak": peak, "planned": planned, "parameters": num_parameters(model.backbone)}))
        # All the rest is not under test.
        sys.stdout.flush()
        raise SystemExit


if __name__ == "__main__":
    main(sys.argv[1:])
