"""What a training costs on more accelerators: what they send each other, the time of a step, where more don't help."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from rearkit.errors import RecipeError
from rearkit.planning.machine import Machine
from rearkit.planning.measure import DTYPES, StepMemory, parameter_counts
from rearkit.planning.micro_batch import with_micro_batch
from rearkit.recipe.tables import Recipe
from rearkit.training.deepspeed_config import batch_layout

RANKS = (1, 8, 64, 512)
# Below this share of perfect scaling, more accelerators cost more than they save.
WORTH = 0.8


@attrs.frozen
class Messages:
    """The bytes of the messages of one step, as each rank hands them to NCCL.

    Attributes:
        reduced: summed over the ranks (all-reduce, or reduce-scatter at stage 3).
        gathered: put together from all ranks' parts (all-gather); the whole, not a rank's part.
    """

    reduced: int
    gathered: int

    def sent(self, ranks: int, stage: int) -> float:
        """Return the bytes that each rank sends, by ring algorithms."""
        # An all-reduce is a reduce-scatter and an all-gather, and each of these sends all parts but the rank's own.
        rounds = 1 if stage == 3 else 2
        return (ranks - 1) / ranks * (rounds * self.reduced + self.gathered)


@attrs.frozen
class Scale:
    """The cost of a training on a number of accelerators.

    Attributes:
        ranks: accelerators.
        micro_batch, accumulation: of each; 0 where the training is not possible.
        compute: seconds of a step's arithmetic.
        communication: seconds of a step's messages, as if nothing else went on meanwhile.
        utilisation: share of the peak that the whole step reaches (MFU).
        hours: of the whole training.
        why: what limits it, or why it is not possible, in words.
    """

    ranks: int
    micro_batch: int = 0
    accumulation: int = 0
    compute: float = 0.0
    communication: float = 0.0
    utilisation: float = 0.0
    hours: float = 0.0
    why: str = ""


def messages(recipe: Recipe, parameters: int, accumulation: int) -> Messages:
    """Return the messages of a step.

    Args:
        recipe: what to train.
        parameters: numbers that are trained.
        accumulation: micro-batches of a step on each rank.
    """
    stage = recipe.train.zero_stage
    size = parameters * DTYPES[recipe.train.precision].itemsize
    # With ZeRO, gradients in bf16 are sent as they are summed, in float32.
    reduced = parameters * 4 if stage and recipe.train.precision == "bf16" else size
    # From stage 2 on a rank keeps only its part of the gradients, so that each micro-batch's are sent.
    times = accumulation if stage >= 2 else 1
    # Stage 3 gathers the weights for each forward and for each backward pass.
    gathered = {0: 0, 1: size, 2: size, 3: 2 * size * accumulation}[stage]
    return Messages(reduced=reduced * times, gathered=gathered)


def scaling(recipe: Recipe, machine: Machine, flops: int, numbers: Sequence[int] = RANKS) -> list[Scale]:
    """Return the cost on several numbers of accelerators of this kind, with the same global batch.

    Args:
        recipe: what to train.
        machine: of which kind.
        flops: of a step, over all accelerators.
        numbers: of accelerators.

    Raises:
        RearkitError: a component cannot be planned.
    """
    parameters = parameter_counts(recipe).trained
    found: list[Scale] = []
    known: dict[int, StepMemory] = {}
    for ranks in numbers:
        here = attrs.evolve(machine, ranks=ranks)
        try:
            fitted = with_micro_batch(recipe, here, known=known)
            micro, accumulation = batch_layout(fitted.train, ranks)
        except RecipeError as error:
            found.append(Scale(ranks, why=str(error).split("; ")[0]))
            continue
        compute = flops / (ranks * machine.tflops * 1e12 * machine.utilisation)
        sent = messages(fitted, parameters, accumulation).sent(ranks, fitted.train.zero_stage)
        communication = sent / here.bandwidth
        seconds = compute + communication
        # What one accelerator would take, at the same utilisation.
        efficiency = compute / seconds
        found.append(
            Scale(
                ranks=ranks,
                micro_batch=micro,
                accumulation=accumulation,
                compute=compute,
                communication=communication,
                utilisation=machine.utilisation * efficiency,
                hours=recipe.train.steps * seconds / 3600,
                why=_why(efficiency, sent, here, ranks),
            )
        )
    return found


def _why(efficiency: float, sent: float, machine: Machine, ranks: int) -> str:
    if ranks == 1:
        return "nothing is sent"
    share = f"{1 - efficiency:.0%} of a step is communication: {sent / 1e9:.2f} GB at {machine.bandwidth / 1e9:g} GB/s"
    return share if efficiency >= WORTH else f"past its scale: {share}"
