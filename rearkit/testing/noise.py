"""The contract of a noise schedule."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from rearkit.contracts import NoiseSchedule, NoiseStep, TokenSpace
from rearkit.contracts.methods import PREDICTIONS
from rearkit.testing.clauses import SPACE, named, require, require_tensor, seeded

ROWS = 40
PROGRESS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def check_noise_schedule(schedule: NoiseSchedule, batch: int = 300, space: TokenSpace = SPACE) -> None:
    """Check a noise schedule: its rates' shape, dtype and range, their source of randomness, and its replacements.

    Args:
        schedule: the schedule to check.
        batch: number of samples to draw for at a time.
        space: the sizes that it was built for, where its build takes a context.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    require(
        isinstance(schedule, NoiseSchedule), f"a noise schedule must have a method rates; {named(schedule)} has none"
    )
    calls = [(progress, size) for progress in PROGRESS for size in (1, batch)]
    with seeded():
        first = [_rates(schedule, progress, size, space) for progress, size in calls]
        torch.manual_seed(1)
        # In reverse order: a resumed run asks for the second half without having asked for the first.
        again = [_rates(schedule, progress, size, space) for progress, size in reversed(calls)]
        for (progress, _), one, other in zip(calls, first, reversed(again), strict=True):
            require(
                torch.equal(one, other),
                "rates must depend on progress, batch and generator alone: "
                f"at progress {progress} a generator of the same seed gave other rates the second time",
            )
        if hasattr(schedule, "replacements"):
            _check_replacements(schedule, space)


def _rates(schedule: NoiseSchedule, progress: float, batch: int, space: TokenSpace) -> torch.Tensor:
    before = _global_state()
    rates = schedule.rates(progress, batch, torch.Generator().manual_seed(7))
    require(_global_state() == before, "rates must be drawn from the generator given; the global random state was used")
    what = f"rates(progress={progress}, batch={batch})"
    each_token = isinstance(rates, torch.Tensor) and rates.dim() == 2
    shape = (batch, space.num_tokens) if each_token else (batch,)
    rates = require_tensor(rates, shape, torch.float32, what)
    require(
        ((rates >= 0) & (rates <= 1)).all(),
        f"rates must lie in [0, 1]; at progress {progress} they go from {rates.min():g} to {rates.max():g}",
    )
    return rates


def _check_replacements(schedule: Any, space: TokenSpace) -> None:
    reads, extra = getattr(schedule, "reads", ()), getattr(schedule, "extra_tokens", 0)
    require(
        isinstance(reads, list | tuple) and all(field == PREDICTIONS for field in reads),
        f"reads of a noise schedule can list {PREDICTIONS} only; found {reads!r}",
    )
    require(type(extra) is int and extra >= 0, f"extra_tokens must be a whole number from 0; found {extra!r}")
    shape = (ROWS, space.num_tokens)
    tokens_BN = torch.randint(space.codebook_size, shape)
    replaced_BN = torch.rand(shape) < 0.5
    logits_BNV = torch.randn(*shape, space.codebook_size) if PREDICTIONS in reads else None
    # At both ends of what can be drawn, where rounding leaves the codebook.
    for draws_BN in (torch.zeros(shape), torch.rand(shape), torch.full(shape, 1 - 2.0**-24)):
        step = NoiseStep(tokens_BN, replaced_BN, draws_BN, 0.5, logits_BNV)
        before, kept = _global_state(), tokens_BN.clone()
        codes_BN = require_tensor(schedule.replacements(step), shape, torch.int64, "replacements")
        require(_global_state() == before, "replacements must be drawn from draws_BN; the global random state was used")
        require(torch.equal(kept, tokens_BN), "replacements must not write into the tokens")
        last = space.codebook_size + extra - 1
        chosen = codes_BN[replaced_BN]
        require(
            ((chosen >= 0) & (chosen <= last)).all(),
            f"replacements must lie in [0, {last}]; found {chosen.min()} to {chosen.max()}",
        )
        # Rows are divided among ranks and micro-batches.
        few = None if logits_BNV is None else logits_BNV[:2]
        part = NoiseStep(tokens_BN[:2], replaced_BN[:2], draws_BN[:2], 0.5, few)
        require(
            torch.equal(schedule.replacements(part), codes_BN[:2]),
            "replacements of a row must not depend on the other rows",
        )


def _global_state() -> tuple[object, ...]:
    # numpy's and Python's generators too, since a schedule may use any of the three.
    _, keys, *place = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), place, random.getstate()
