"""``plan``: estimate a recipe's memory, time and disk on given accelerators, without having them."""

from __future__ import annotations

import attrs

from rearkit.errors import RecipeError
from rearkit.model import build_dataset, build_tokenizer
from rearkit.planning.machine import Machine
from rearkit.planning.measure import (
    SamplingMemory,
    parameter_counts,
    sampling_memory,
    step_flops,
)
from rearkit.planning.micro_batch import by_stage, with_micro_batch
from rearkit.planning.sizes import train_size, views_made
from rearkit.planning.step_memory import GIB, RankMemory
from rearkit.recipe.tables import Recipe
from rearkit.training.deepspeed_config import batch_layout

MICRO_BATCHES = 8  # powers of two in the table, at most
# Token shards hold the class as int32 and each token as uint16.
CLASS_BYTES = 4
TOKEN_BYTES = 2


@attrs.frozen
class Plan:
    """The estimates for one recipe on one `Machine`.

    Attributes:
        backbone_parameters: number of parameters that sampling needs.
        head_parameters: number of parameters of the regularizers' training-only heads.
        frozen_parameters: number of parameters that the regularizers keep and do not train.
        micro_batch, accumulation: as the recipe has them on the machine's ranks, or as they fit the memory.
        flops: of one optimizer step, forward and backward, summed over all ranks.
        steps, samples, tokens: numbers for the whole training.
        epochs: passes over the training images; None if their number is unknown.
        seconds: duration of the whole training.
        token_shards: bytes on disk; None if the number of training images is unknown.
        checkpoint: bytes of one checkpoint.
        checkpoints: most checkpoints on disk at a time.
        export: bytes of the exported model.
        sampling: memory of one rank.
        memory: training memory of one rank, by micro-batch and then ZeRO stage.
    """

    backbone_parameters: int
    head_parameters: int
    frozen_parameters: int
    micro_batch: int
    accumulation: int
    flops: int
    steps: int
    samples: int
    tokens: int
    epochs: float | None
    seconds: float
    token_shards: int | None
    checkpoint: int
    checkpoints: int
    export: int
    sampling: SamplingMemory
    memory: dict[int, dict[int, RankMemory]]


def make_plan(recipe: Recipe, machine: Machine) -> Plan:
    """Estimate a recipe's training and sampling.

    Raises:
        RecipeError: the global batch does not divide over the ranks, or the recipe trains for 0 steps.
        RearkitError: a component cannot be planned.
    """
    if recipe.train.steps == 0:
        raise RecipeError([f"{recipe.name}: [train] steps: 0, so there is no training to plan"])
    # First, since it fails for a batch that does not divide over the ranks, and the rest takes a while.
    recipe = with_micro_batch(recipe, machine, anyway=True)
    train = recipe.train
    micro, accumulation = batch_layout(train, machine.ranks)
    counts = parameter_counts(recipe)
    num_tokens = build_tokenizer(recipe, load=False).num_tokens
    flops = step_flops(recipe, micro) * accumulation * machine.ranks
    samples = train.steps * train.global_batch
    images = train_size(recipe)
    # Shards hold each training image once per view of the augmentation, held-out images once.
    views = views_made(recipe.tokens)
    held_out = 0 if images is None else build_dataset(recipe).size("held-out") or 0
    every = train.steps // train.keep_every if train.keep_every else 0
    # A checkpoint holds weights, AdamW's two moments and the moving average, all in float32.
    numbers = 3 + (train.ema_decay > 0)
    return Plan(
        backbone_parameters=counts.backbone,
        head_parameters=counts.heads,
        frozen_parameters=counts.frozen,
        micro_batch=micro,
        accumulation=accumulation,
        flops=flops,
        steps=train.steps,
        samples=samples,
        tokens=samples * num_tokens,
        epochs=None if images is None else samples / images,
        seconds=train.steps * flops / (machine.ranks * machine.tflops * 1e12 * machine.utilisation),
        token_shards=None if images is None else (images * views + held_out) * (TOKEN_BYTES * num_tokens + CLASS_BYTES),
        checkpoint=4 * (numbers * counts.trained + counts.frozen),
        # A new checkpoint is written before the oldest is removed.
        checkpoints=train.keep_checkpoints + every + 1,
        # Without the heads: sampling does not use them.
        export=4 * counts.backbone,
        sampling=sampling_memory(recipe, machine.cuda),
        memory={size: by_stage(recipe, machine, size, counts) for size in micro_batches(micro, accumulation)},
    )


def micro_batches(micro: int, accumulation: int) -> list[int]:
    """Return the recipe's micro-batch and the smallest powers of two that divide a rank's share, in ascending order."""
    # A rank's share of the global batch: only its divisors are micro-batches that a recipe can have.
    share = micro * accumulation
    powers = [1 << n for n in range(share.bit_length()) if share % (1 << n) == 0]
    return sorted({*powers[:MICRO_BATCHES], micro})


def gib(size: float) -> str:
    """Format bytes as GiB, or as MiB below a tenth of a GiB."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
