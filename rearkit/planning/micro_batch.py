"""The micro-batch of a recipe that leaves it out: the largest that an accelerator's memory holds."""

from __future__ import annotations

import attrs

from rearkit.errors import RecipeError
from rearkit.planning.machine import Machine
from rearkit.planning.measure import DTYPES, ParameterCounts, StepMemory, parameter_counts, step_memory
from rearkit.planning.step_memory import GIB, STAGES, RankMemory, Settings, rank_memory
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import Recipe
from rearkit.training.deepspeed_config import batch_layout, deepspeed_config

# What compiled blocks keep for the backward pass, of what eager ones do: S and L at micro-batch 128, on one H100.
COMPILED = 1.17


def with_micro_batch(
    recipe: Recipe, machine: Machine, anyway: bool = False, known: dict[int, StepMemory] | None = None
) -> Recipe:
    """Return a recipe that names its micro-batch; on a CPU, whose memory swaps, a rank's whole share is kept.

    Args:
        recipe: what to train.
        machine: on what.
        anyway: take one sample, where not even that fits.
        known: the memory of a step by micro-batch, which takes seconds to find; what is found is added.

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
        chosen = with_changes(recipe, train=with_changes(recipe.train, micro_batch=size))
        memory = by_stage(chosen, machine, size, counts, known)[recipe.train.zero_stage]
        if memory.total <= machine.usable:
            return chosen
    if anyway:
        return chosen
    raise RecipeError(
        [
            f"[train] micro_batch: one sample takes {memory.total / GIB:.1f} GiB of the {machine.usable / GIB:.1f} GiB "
            "that a rank may use; set activation_checkpointing = true, a higher zero_stage, or train on more ranks"
        ]
    )


def by_stage(
    recipe: Recipe,
    machine: Machine,
    micro_batch: int,
    counts: ParameterCounts,
    known: dict[int, StepMemory] | None = None,
) -> dict[int, RankMemory]:
    """Estimate the memory of a training rank at each ZeRO stage.

    Args:
        recipe: what to train.
        machine: on what.
        micro_batch: B.
        counts: numbers of its parameters.
        known: as in `with_micro_batch`.
    """
    train = recipe.train
    known = {} if known is None else known
    if micro_batch not in known:
        known[micro_batch] = step_memory(recipe, micro_batch, machine.cuda)
    step = known[micro_batch]
    if train.compile:
        more = int(step.activations * (COMPILED - 1))
        step = attrs.evolve(step, activations=step.activations + more, both=step.both + more)
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
