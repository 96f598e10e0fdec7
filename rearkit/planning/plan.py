"""``plan``: what a recipe costs on given accelerators, before anything is there to run it on."""

from __future__ import annotations

from typing import Any

import attrs

from rearkit.errors import RecipeError
from rearkit.model import build_dataset, build_tokenizer
from rearkit.planning.measure import (
    DTYPES,
    SamplingMemory,
    parameter_counts,
    sampling_memory,
    step_flops,
    step_memory,
)
from rearkit.planning.sizes import train_size
from rearkit.planning.step_memory import GIB, STAGES, RankMemory, rank_memory
from rearkit.recipe.tables import VIEWS, Recipe
from rearkit.training.deepspeed_config import batch_layout, deepspeed_config

MICRO_BATCHES = 8  # of them in the table, at most
CLASS_BYTES, TOKEN_BYTES = 4, 2  # of a sample of a token shard


@attrs.frozen
class Machine:
    """What a plan is for.

    Attributes:
        ranks: accelerators, over all nodes.
        memory: of each, bytes.
        tflops: of each at its best, 10^12 operations a second in the recipe's precision.
        utilisation: share of that which training reaches, in (0, 1].
        reserve: share of the memory that is left to the driver, the libraries and fragmentation.
        cuda: whether they are accelerators; else CPUs.
    """

    ranks: int
    memory: float
    tflops: float
    utilisation: float
    reserve: float = 0.1
    cuda: bool = True

    @property
    def usable(self) -> float:
        """Bytes that training may take."""
        return self.memory * (1 - self.reserve)


@attrs.frozen
class Plan:
    """The figures.

    Attributes:
        backbone_parameters: of the backbone, which sampling needs.
        head_parameters: of the regularizers' training-only heads.
        micro_batch, accumulation: as the recipe has them on so many ranks.
        flops: of one step's forward and backward passes, on all ranks.
        steps, samples, tokens: of the whole training.
        epochs: where the number of training images is known.
        seconds: of the whole training.
        token_shards: bytes, where the number of training images is known.
        checkpoint: bytes of one.
        checkpoints: how many are on the disk at most.
        export: bytes of the exported model.
        sampling: of one rank.
        memory: by micro-batch and ZeRO stage.
    """

    backbone_parameters: int
    head_parameters: int
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
    """Work a plan out.

    Raises:
        RecipeError: the batch does not divide over the ranks, or there is nothing to train.
        RearkitError: a component cannot be planned.
    """
    train = recipe.train
    if train.steps == 0:
        raise RecipeError([f"{recipe.name}: [train] steps: 0, so there is no training to plan"])
    micro, accumulation = batch_layout(train, machine.ranks)
    backbone, heads = parameter_counts(recipe)
    num_tokens = build_tokenizer(recipe, load=False).num_tokens
    flops = step_flops(recipe, micro) * accumulation * machine.ranks
    samples = train.steps * train.global_batch
    images, views = train_size(recipe), 0 if recipe.tokens.on_the_fly else VIEWS[recipe.tokens.augment]
    held_out = 0 if images is None else build_dataset(recipe).size("held-out") or 0
    every = train.steps // train.keep_every if train.keep_every else 0
    numbers = 3 + (train.ema_decay > 0)
    return Plan(
        backbone_parameters=backbone,
        head_parameters=heads,
        micro_batch=micro,
        accumulation=accumulation,
        flops=flops,
        steps=train.steps,
        samples=samples,
        tokens=samples * num_tokens,
        epochs=None if images is None else samples / images,
        seconds=train.steps * flops / (machine.ranks * machine.tflops * 1e12 * machine.utilisation),
        token_shards=None if images is None else (images * views + held_out) * (TOKEN_BYTES * num_tokens + CLASS_BYTES),
        checkpoint=4 * numbers * (backbone + heads),
        checkpoints=train.keep_checkpoints + every + 1,  # one more while it is written
        export=4 * backbone,
        sampling=sampling_memory(recipe, machine.cuda),
        memory={
            size: _by_stage(recipe, machine, size, backbone + heads) for size in micro_batches(micro, accumulation)
        },
    )


def micro_batches(micro: int, accumulation: int) -> list[int]:
    """The recipe's micro-batch, and powers of two that divide a rank's share, the largest ones first to go."""
    share = micro * accumulation
    powers = [1 << n for n in range(share.bit_length()) if share % (1 << n) == 0]
    return sorted({*powers[:MICRO_BATCHES], micro})


def _by_stage(recipe: Recipe, machine: Machine, micro_batch: int, parameters: int) -> dict[int, RankMemory]:
    train = recipe.train
    step = step_memory(recipe, micro_batch, machine.cuda)
    zero = deepspeed_config(train, machine.ranks)["zero_optimization"]
    if not machine.cuda:  # a CPU's own memory is where offloading goes
        zero = {key: value for key, value in zero.items() if not key.startswith("offload_")}
    options: dict[str, Any] = {
        "value_bytes": DTYPES[train.precision].itemsize,
        "accumulates": train.global_batch // machine.ranks > micro_batch,
        "averages": train.ema_decay > 0,
        "zero": zero,
    }
    return {stage: rank_memory(step, parameters, stage, machine.ranks, **options) for stage in STAGES}


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
