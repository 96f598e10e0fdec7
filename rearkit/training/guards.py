"""What is watched at each step: losses and gradients that are no numbers, and gradient norms that jump.

A step whose loss or gradient is NaN or infinite, on any rank, is skipped on all of them: weights and optimizer state
stay as they are, to the bit. DeepSpeed does so itself wherever it wraps the optimizer; it looks at the gradients, which
are summed over the ranks, so `poisoned` makes the gradients tell of the loss. Where it does not wrap the optimizer
(ZeRO stage 0 in fp32), `GuardedAdamW` does the same.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rearkit.errors import DivergedError
from rearkit.recipe.train_table import GuardsTable
from rearkit.system import distributed
from rearkit.system.console import say

MEDIAN_OF, FEWEST = 100, 10  # steps: whose median a norm is held against, and how many there must have been
NAMED = 8  # shards named in a message


def poisoned(loss: Tensor) -> Tensor:
    """Return a loss whose gradient is NaN where the loss is NaN or infinite, and the loss itself elsewhere.

    An infinite loss may have a finite gradient. There is no wait for the device in this.
    """
    good = torch.isfinite(loss.detach())
    return loss * torch.where(good, 1.0, math.nan).to(loss.dtype)


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips, tells the gradient norm, and does nothing where that is NaN or infinite.

    For whoever steps all parameters at once with gradients that are alike on all ranks. The two public facts about the
    last step have the names under which DeepSpeed looks for them.

    Args:
        groups: parameter groups.
        clip: gradient norm to clip at; 0 for no clipping.
        lr: learning rate.
        betas: AdamW's.
    """

    def __init__(self, groups: Iterable[dict[str, object]], clip: float, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.clip = clip
        self.overflow = False
        self._global_grad_norm: float | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step, or none; clips the gradients in place."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return
        if self.clip:
            clip_grads_with_norm_(parameters, self.clip, norm)
        super().step()


class StepGuard:
    """Counts and tells what went wrong, and stops training past the recipe's limit.

    Args:
        table: the limits.
        may_overflow: tells whether a gradient may be infinite for good reason: fp16's loss scale is being found.
        shards_of: names the shards that samples come from, by their indices.
    """

    def __init__(
        self, table: GuardsTable, may_overflow: Callable[[], bool], shards_of: Callable[[np.ndarray], list[str]]
    ) -> None:
        self.table, self.may_overflow, self.shards_of = table, may_overflow, shards_of
        self.skipped = self.spikes = 0
        self._norms: deque[float] = deque(maxlen=MEDIAN_OF)

    def counts(self) -> dict[str, float]:
        """For the log: how many steps were skipped and how many norms jumped, since the start or the resume."""
        return {"skipped_steps": float(self.skipped), "grad_norm_spikes": float(self.spikes)}

    def after_step(
        self, step: int, skipped: bool, norm: float | None, losses: Sequence[Tensor], indices: Sequence[np.ndarray]
    ) -> None:
        """Look at a step that was taken or skipped; all ranks call this.

        Args:
            step: its number, counted from 1.
            skipped: whether it was skipped, alike on all ranks.
            norm: gradient norm before clipping, or None where nobody knows.
            losses: of this rank's micro-batches, scalars.
            indices: the samples of each of them.

        Raises:
            DivergedError: more steps were skipped than the recipe allows; alike on all ranks.
        """
        if skipped:
            self._count_skipped(step, losses, indices)
        elif norm is not None and math.isfinite(norm):
            self._watch(step, norm)

    def _count_skipped(self, step: int, losses: Sequence[Tensor], indices: Sequence[np.ndarray]) -> None:
        values = [float(loss) for loss in losses]
        bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
        suspects = [indices[index] for index in bad] or indices
        found = distributed.from_all((values[bad[0]] if bad else None, self.shards_of(np.concatenate(suspects))))
        guilty = {rank: value for rank, (value, _) in enumerate(found) if value is not None}
        if not guilty and self.may_overflow():
            return
        self.skipped += 1
        told = [f"{value} on rank {rank}" if len(found) > 1 else str(value) for rank, value in guilty.items()]
        what = f"the loss is {' and '.join(told)}" if guilty else "the gradient is NaN or infinite"
        shards = [shard for rank, (_, names) in enumerate(found) if rank in guilty or not guilty for shard in names]
        text = f"train: step {step}: {what}; its samples come from {_listed(shards)}"
        limit = self.table.max_skipped_steps
        if self.skipped > limit:
            raise DivergedError(
                f"{text}; {self.skipped} steps skipped, more than the {limit} that [train.guards] max_skipped_steps "
                "allows. The weights are those before the first of the last skipped steps. Look at these samples, or "
                "lower [train] lr; running again goes on from the last checkpoint"
            )
        say(f"{text}; the step is skipped ({self.skipped} of at most {limit})")

    def _watch(self, step: int, norm: float) -> None:
        if self.table.spike_factor and len(self._norms) >= FEWEST:
            median = statistics.median(self._norms)
            if norm > self.table.spike_factor * median:
                self.spikes += 1
                say(f"train: step {step}: gradient norm {norm:.3g}, {norm / median:.0f} times the median {median:.3g}")
        self._norms.append(norm)


def _listed(shards: Iterable[str]) -> str:
    names = sorted(set(shards))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
