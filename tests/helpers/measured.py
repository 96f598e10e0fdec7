"""Train two steps of a recipe through the real engine, and print what torch's CPU allocator saw: run by a test.

    python measured.py RECIPE_JSON MICRO_BATCH

The most bytes that were allocated at any time since before the model was built, by the profiler's record of every
allocation and release. That is what the operating system must give, but for the allocator's fragments.
"""

from __future__ import annotations

import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from rearkit.model import build
from rearkit.recipe.loading import load_recipe
from rearkit.training.batches import Batch
from rearkit.training.blocks import prepared_blocks
from rearkit.training.engine import Engine
from rearkit.training.train_module import TrainModule


def main() -> None:
    recipe, size = load_recipe(json.loads(sys.argv[1])), int(sys.argv[2])
    model = build(recipe)
    weights = sum(p.numel() * 4 for p in TrainModule(model).parameters())
    tokens_BN = torch.randint(model.space.codebook_size, (size, model.space.num_tokens))
    classes_B = torch.randint(model.space.num_classes, (size,))
    batch = Batch(tokens_BN, tokens_BN.flip(1), tokens_BN != tokens_BN.flip(1), classes_B, 0.5)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, prepared_blocks(model):
        engine = Engine(TrainModule(model), recipe.train, torch.device("cpu"))
        engine.train()
        for _ in range(3):
            for piece in batch.pieces(recipe.train.micro_batch or size):
                loss, _parts = engine(piece)
                engine.backward(loss)
                del loss, _parts
                engine.step()
    live = peak = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    print(json.dumps({"peak": weights + peak, "events": len(events)}))


if __name__ == "__main__":
    main()
