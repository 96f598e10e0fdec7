"""Memory of a training rank by ZeRO stage: weights, gradients, optimizer and activations.

What each stage divides among the ranks is from the ZeRO paper (Rajbhandari et al. 2020, section 5): from stage 1 the
optimizer's state, from stage 2 also gradients, at stage 3 also weights. The rest is from DeepSpeed's code: in 16-bit
precision, and from stage 1 in any precision, it updates a float32 copy of the weights.
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
        weights: in the precision of the step, and float32 copies of frozen weights in 16 bits, which averages need.
        gradients: of the weights, in the same precision.
        optimizer: AdamW's two moments and, if there are any, the moving average and the float32 copy of the weights.
        activations: activations and temporary tensors of the step.
        buffer: DeepSpeed's buffer for exchanging gradients, sized by reduce_bucket_size.
        offloaded: optimizer state and weights kept in the host's memory or on its disk; not part of the total.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffer: int
    offloaded: int

    @property
    def total(self) -> int:
        """All bytes on the accelerator: the sum without what is offloaded."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffer


@attrs.frozen
class Settings:
    """What of a recipe's training decides memory.

    Attributes:
        value_bytes: size of a number in the precision of the step, 4 or 2.
        sum_bytes: size of a number in which gradients are summed and sent, where ZeRO divides the optimizer's state.
        accumulates: True if a step has several micro-batches, so that gradients exist when a forward pass begins.
        averages: True if a moving average of the weights is kept.
        zero: DeepSpeed's ``zero_optimization``: bucket size and offloading.
    """

    value_bytes: int
    sum_bytes: int
    accumulates: bool
    averages: bool
    zero: Mapping[str, Any]


def rank_memory(
    step: StepMemory, parameters: int, stage: int, ranks: int, settings: Settings, frozen: int = 0
) -> RankMemory:
    """Compute a rank's memory from that of one micro-batch.

    Args:
        step: memory of one micro-batch.
        parameters: number of trained parameters, of backbone and heads.
        stage: ZeRO stage, 0 to 3.
        ranks: number of ranks.
        settings: the recipe's.
        frozen: number of parameters that are not trained, such as those of a teacher.
    """
    value_bytes = settings.value_bytes
    zero = settings.zero

    def share(size: int, first_divided: int) -> int:
        # Rounded up: DeepSpeed pads what it divides, so that all ranks hold equally much.
        return -(-size // ranks) if stage >= first_divided else size

    copies = stage >= 1 or value_bytes < 4
    numbers = 2 + settings.averages + copies  # per parameter: two moments, average, copy
    sum_bytes = settings.sum_bytes if stage >= 1 else value_bytes
    gradients = share(step.gradients * sum_bytes // value_bytes, 2)
    # A backward pass frees activations while it makes gradients, so the two together need less than their sum. Not so
    # if the gradients exist before (accumulation) or are not all kept (stages 2 and 3).
    activations = step.activations if settings.accumulates or stage >= 2 else step.both - step.gradients
    bucket = int(zero.get("reduce_bucket_size", BUCKET)) if stage >= 1 else 0
    # With sums in float32, DeepSpeed has another optimizer, which puts together no more than there is.
    if stage == 1 and sum_bytes > value_bytes:
        bucket = min(bucket, parameters)
    weights = share((parameters + frozen) * value_bytes, 3)
    # Whole on each rank at any stage: see `Engine.whole`.
    exact = frozen * 4 if value_bytes < 4 else 0
    optimizer = share(numbers * 4 * parameters, 1)
    # What is offloaded leaves the accelerator, but still needs room on the host, so it is reported separately.
    offloaded = 0
    if stage >= 1 and "offload_optimizer" in zero:
        optimizer, offloaded = 0, optimizer
    if stage == 3 and "offload_param" in zero:
        weights, offloaded = 0, offloaded + weights
    return RankMemory(
        weights=weights + exact,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        # Stage 0 flattens all gradients into one tensor. Later stages put them together bucket by bucket: stage 1 in
        # float32, stage 2 as they come, stage 3 as they are sent. Overlapping communication needs a second bucket.
        buffer=step.gradients
        if stage == 0
        else bucket * {1: 4, 2: value_bytes, 3: sum_bytes}[stage] * (2 if zero.get("overlap_comm") else 1),
        offloaded=offloaded,
    )
