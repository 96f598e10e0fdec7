"""Checks at each step: for losses and gradients that are NaN or infinite, and for gradient norms that jump.

A step whose loss or gradient is NaN or infinite on any rank is skipped on all ranks: weights and optimizer state do not
change by a single bit. DeepSpeed does this itself wherever it wraps the optimizer. It checks the gradients, which are
summed over the ranks, so `poisoned` makes the gradients NaN if the loss is. Where DeepSpeed does not wrap the optimizer
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

# Steps whose median a gradient norm is compared with.
MEDIAN_OF = 100
# Steps before the first comparison, since a median of fewer says little.
FEWEST = 10
# Shards named in a message, so that it stays readable when a batch mixes samples of hundreds.
NAMED = 8


def poisoned(loss: Tensor) -> Tensor:
    """Return the loss unchanged if it is finite, else one whose gradient is NaN.

    This is needed since an infinite loss may have a finite gradient. It does not wait for the device.
    """
    # `where` instead of `if`: a branch would wait for the device. NaN times anything is NaN, in the gradient too.
    good = torch.isfinite(loss.detach())
    return loss * torch.where(good, 1.0, math.nan).to(loss.dtype)


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips gradients, and skips a step whose gradient norm is NaN or infinite.

    All parameters must be stepped at once, and gradients must be the same on all ranks. ``overflow`` and
    ``_global_grad_norm`` describe the last step; these are the names that DeepSpeed reads.

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
        """Clip the gradients in place and take a step, or skip it."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        # One norm over all gradients answers both questions: it is finite only if each gradient is.
        norm = get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not math.isfinite(self._global_grad_norm)
        if self.overflow:
            return
        if self.clip:
            clip_grads_with_norm_(parameters, self.clip, norm)
        super().step()


class StepGuard:
    """Counts and reports skipped steps and jumps of the gradient norm; stops training beyond the recipe's limit.

    Args:
        table: the limits.
        may_overflow: returns True while an infinite gradient is normal, because fp16's loss scale can still be lowered.
        shards_of: returns the names of the shards that samples come from, by their indices.
    """

    def __init__(
        self, table: GuardsTable, may_overflow: Callable[[], bool], shards_of: Callable[[np.ndarray], list[str]]
    ) -> None:
        self.table = table
        self.may_overflow = may_overflow
        self.shards_of = shards_of
        self.skipped = self.spikes = 0
        self._norms: deque[float] = deque(maxlen=MEDIAN_OF)

    def counts(self) -> dict[str, float]:
        """Return for the log how many steps were skipped and how many norms jumped, since the start or the resume."""
        return {"skipped_steps": float(self.skipped), "grad_norm_spikes": float(self.spikes)}

    def after_step(
        self, step: int, skipped: bool, norm: float | None, losses: Sequence[Tensor], indices: Sequence[np.ndarray]
    ) -> None:
        """Check a step that was taken or skipped. All ranks must call this.

        Args:
            step: the step's number, counted from 1.
            skipped: whether it was skipped; the same on all ranks.
            norm: gradient norm before clipping, or None if it is unknown.
            losses: the scalar losses of this rank's micro-batches.
            indices: the indices of each micro-batch's samples.

        Raises:
            DivergedError: more steps were skipped than the recipe allows; raised on all ranks.
        """
        if skipped:
            self._count_skipped(step, losses, indices)
        elif norm is not None and math.isfinite(norm):
            self._watch(step, norm)

    def _count_skipped(self, step: int, losses: Sequence[Tensor], indices: Sequence[np.ndarray]) -> None:
        values = [float(loss) for loss in losses]
        bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
        # If all losses here are finite, a gradient was not, and any micro-batch may have caused it.
        suspects = [indices[index] for index in bad] or indices
        found = distributed.from_all((values[bad[0]] if bad else None, self.shards_of(np.concatenate(suspects))))
        guilty = {rank: value for rank, (value, _) in enumerate(found) if value is not None}
        # fp16 lowers its loss scale by skipping steps, which is no trouble as long as the losses are finite.
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
        # Compared with the median, since a mean would be raised by the very spikes it should show.
        if self.table.spike_factor and len(self._norms) >= FEWEST:
            median = statistics.median(self._norms)
            if norm > self.table.spike_factor * median:
                self.spikes += 1
                say(f"train: step {step}: gradient norm {norm:.3g}, {norm / median:.0f} times the median {median:.3g}")
        # A spike is kept too: if norms stay high, the median follows, and the reports end.
        self._norms.append(norm)


def _listed(shards: Iterable[str]) -> str:
    names = sorted(set(shards))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
