"""The micro-batch of a recipe that leaves it out: the largest that an accelerator's memory holds."""

from __future__ import annotations

import attrs

from rearkit.errors import RecipeError
from rearkit.planning.machine import Machine
from rearkit.planning.measure import DTYPES, ParameterCounts, parameter_counts, step_memory
from rearkit.planning.step_memory import GIB, STAGES, RankMemory, Settings, rank_memory
from rearkit.recipe.tables import Recipe
from rearkit.training.deepspeed_config import batch_layout, deepspeed_config

# What the compiler adds to the peak of an S or B model, measured on one H100 and on a stand-in device.
COMPILED = 1.2


def with_micro_batch(recipe: Recipe, machine: Machine, anyway: bool = False) -> Recipe:
    """Return a recipe that names its micro-batch; on a CPU, whose memory swaps, a rank's whole share is kept.

    Args:
        recipe: what to train.
        machine: on what.
        anyway: take one sample, where not even that fits.

    Raises:
        RecipeError: not even one sample fits, or the global batch does not divide over the ranks.
    """
    if recipe.train.micro_batch is not None or not machine.cuda or not recipe.train.steps:
        return recipe
    share, _ = batch_layout(recipe.train, machine.ranks)
    counts = parameter_counts(recipe)
    # From the largest: memory grows with the size but for a part that does not, so few are tried.
    powers = [1 << n for n in range(share.bit_length()) if share % (1 << n) == 0]
    for size in sorted({*powers, share}, reverse=True):
        chosen: Recipe = attrs.evolve(recipe, train=attrs.evolve(recipe.train, micro_batch=size))  # type: ignore[misc]
        memory = by_stage(chosen, machine, size, counts)[recipe.train.zero_stage]
        if memory.total * (COMPILED if recipe.train.compile else 1) <= machine.usable:
            return chosen
    if anyway:
        return chosen
    raise RecipeError(
        [
            f"[train] micro_batch: one sample takes {memory.total / GIB:.1f} GiB of the {machine.usable / GIB:.1f} GiB "
            "that a rank may use; set activation_checkpointing = true, a higher zero_stage, or train on more ranks"
        ]
    )


def by_stage(recipe: Recipe, machine: Machine, micro_batch: int, counts: ParameterCounts) -> dict[int, RankMemory]:
    """Estimate the memory of a training rank at each ZeRO stage.

    Args:
        recipe: what to train.
        machine: on what.
        micro_batch: B.
        counts: numbers of its parameters.
    """
    train = recipe.train
    step = step_memory(recipe, micro_batch, machine.cuda)
    # As training would configure DeepSpeed, with the recipe's own settings for it.
    zero = deepspeed_config(train, machine.ranks)["zero_optimization"]
    # On a CPU, offloading moves nothing out of the memory that is counted.
    if not machine.cuda:
        zero = {key: value for key, value in zero.items() if not key.startswith("offload_")}
    settings = Settings(
        value_bytes=DTYPES[train.precision].itemsize,
        sum_bytes=2 if train.precision == "fp16" else 4,
        accumulates=train.global_batch // machine.ranks > micro_batch,
        averages=train.ema_decay > 0,
        zero=zero,
    )
    return {stage: rank_memory(step, counts.trained, stage, machine.ranks, settings, counts.frozen) for stage in STAGES}
