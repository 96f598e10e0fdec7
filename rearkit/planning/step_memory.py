"""Memory of a rank while it trains, by ZeRO stage: weights, gradients, optimizer and activations.

What each stage divides among the ranks is from the article on ZeRO (Rajbhandari et al. 2020, section 5): the
optimizer's state from stage 1, gradients too from stage 2, weights too at stage 3. What else DeepSpeed holds is from
its code: in 16 bits, and from stage 1 in any precision, it steps on a float32 copy of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from rearkit.planning.measure import StepMemory

GIB = 2**30
STAGES = (0, 1, 2, 3)
BUCKET = 500_000_000  # DeepSpeed's default reduce_bucket_size, in values


@attrs.frozen
class RankMemory:
    """Bytes of one rank.

    Attributes:
        weights: in the precision of the step.
        gradients: of them.
        optimizer: AdamW's two moments, the moving average where there is one, and the float32 copy where there is one.
        activations: what the step needs besides: activations, and whatever lives while they are computed.
        buffer: where DeepSpeed collects gradients for the other ranks, as large as its reduce_bucket_size says.
        offloaded: optimizer and weights that lie in the host's memory or on its disk instead, and are not in the sum.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffer: int
    offloaded: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffer


def rank_memory(
    step: StepMemory,
    parameters: int,
    stage: int,
    ranks: int,
    *,
    value_bytes: int,
    accumulates: bool,
    averages: bool,
    zero: Mapping[str, Any],
) -> RankMemory:
    """Put a rank's memory together.

    Args:
        step: of one micro-batch.
        parameters: of backbone and heads, all of them.
        stage: ZeRO's.
        ranks: how many.
        value_bytes: of a number in the precision of the step: 4 or 2.
        accumulates: whether gradients are there already when a forward pass begins.
        averages: whether a moving average of the weights is kept.
        zero: DeepSpeed's ``zero_optimization``, for the size of its bucket and what it offloads.
    """

    def share(size: int, first_divided: int) -> int:
        return -(-size // ranks) if stage >= first_divided else size

    copies = stage >= 1 or value_bytes < 4
    numbers = 2 + averages + copies
    gradients = share(step.gradients, 2)
    # A backward pass frees activations while it makes gradients, so that the two need less than their sum, unless the
    # gradients are there before (accumulation), or are not all kept (stages 2 and 3).
    activations = step.activations if accumulates or stage >= 2 else step.both - step.gradients
    bucket = int(zero.get("reduce_bucket_size", BUCKET)) if stage >= 1 else 0
    weights, optimizer = share(parameters * value_bytes, 3), share(numbers * 4 * parameters, 1)
    offloaded = 0
    if stage >= 1 and "offload_optimizer" in zero:
        optimizer, offloaded = 0, optimizer
    if stage == 3 and "offload_param" in zero:
        weights, offloaded = 0, offloaded + weights
    return RankMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        buffer=step.gradients  # stage 0 puts all of them into one tensor, for the other ranks
        if stage == 0
        else bucket * (4 if stage == 1 else value_bytes) * (2 if zero.get("overlap_comm") else 1),
        offloaded=offloaded,
    )
