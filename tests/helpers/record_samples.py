"""Run by test_each_sample_once.py, on each rank: train, and write down which samples the loss is computed on.

Arguments: folder, micro-batch, step to stop at by SIGTERM (0 for none).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rearkit import TokenData, build, load_recipe, train
from rearkit.contracts import TrainingStep
from rearkit.errors import Preempted
from rearkit.objective import Loss
from rearkit.training.trainer import Trainer

SAMPLES, GLOBAL_BATCH, STEPS = 62, 12, 31  # six epochs, whose ends lie within steps
CODES = 12
RECIPE: dict[str, Any] = {
    "name": "counted",
    "device": "cpu",
    "data": {"source": {"name": "mnist-5k"}},
    "tokenizer": {
        "name": "maskgit-vqgan",
        "image_size": 8,
        "hidden_channels": 4,
        "channel_mult": [1, 1],
        "num_res_blocks": 1,
        "norm_groups": 2,
        "codebook_size": CODES,
        "embedding_dim": 6,
    },
    "backbone": {"name": "dit-ar", "hidden_size": 16, "num_layers": 2, "num_heads": 2},
    "train": {"steps": STEPS, "global_batch": GLOBAL_BATCH, "checkpoint_every": 1000},
    "sample": {"num_images": 4},
}


def main(folder: Path, micro_batch: int, stop: int) -> None:
    RECIPE["train"]["micro_batch"] = micro_batch
    model = build(load_recipe(RECIPE))
    tokens = np.random.default_rng(0).integers(CODES, size=(SAMPLES, 16))
    tokens[:, 0], tokens[:, 1] = np.divmod(np.arange(SAMPLES), CODES)  # a sample's first tokens are its number
    rank = int(os.environ.get("RANK", "0"))
    current, take_step = [0], Trainer.step

    def noted(trainer: Trainer, samples: Any) -> Any:
        current[0] = trainer.done
        if trainer.done + 1 == stop and rank == int(os.environ.get("WORLD_SIZE", "1")) - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(trainer, samples)

    Trainer.step = noted  # type: ignore[method-assign]
    with (folder / "seen.jsonl").open("a") as log:
        loss = model.objective.loss

        def note(step: TrainingStep) -> Loss:
            numbers = (step.tokens_BN[:, 0] * CODES + step.tokens_BN[:, 1]).tolist()
            log.write(json.dumps({"step": current[0], "rank": rank, "samples": numbers}) + "\n")
            log.flush()
            return loss(step)

        model.objective.loss = note  # type: ignore[method-assign]
        with contextlib.suppress(Preempted):
            train(model, TokenData.from_arrays(tokens, np.zeros(SAMPLES)), folder=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    torch.distributed.destroy_process_group()  # gloo's threads may outlive the interpreter otherwise, and abort it
