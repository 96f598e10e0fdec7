"""The contract of a noise schedule."""

from __future__ import annotations

import random

import numpy as np
import torch

from rearkit.contracts import NoiseSchedule
from rearkit.testing.clauses import named, require, require_tensor, seeded

PROGRESS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def check_noise_schedule(schedule: NoiseSchedule, batch: int = 300) -> None:
    """Check a noise schedule: its rates' shape, dtype and range, and its source of randomness.

    Args:
        schedule: the schedule to check.
        batch: number of rates to draw at a time.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    require(
        isinstance(schedule, NoiseSchedule), f"a noise schedule must have a method rates; {named(schedule)} has none"
    )
    calls = [(progress, size) for progress in PROGRESS for size in (1, batch)]
    with seeded():
        first = [_rates(schedule, progress, size) for progress, size in calls]
        torch.manual_seed(1)
        # In reverse order: a resumed run asks for the second half without having asked for the first.
        again = [_rates(schedule, progress, size) for progress, size in reversed(calls)]
    for (progress, _), one, other in zip(calls, first, reversed(again), strict=True):
        require(
            torch.equal(one, other),
            "rates must depend on progress, batch and generator alone: "
            f"at progress {progress} a generator of the same seed gave other rates the second time",
        )


def _rates(schedule: NoiseSchedule, progress: float, batch: int) -> torch.Tensor:
    before = _global_state()
    rates = schedule.rates(progress, batch, torch.Generator().manual_seed(7))
    require(_global_state() == before, "rates must be drawn from the generator given; the global random state was used")
    rates_B = require_tensor(rates, (batch,), torch.float32, f"rates(progress={progress}, batch={batch})")
    require(
        ((rates_B >= 0) & (rates_B <= 1)).all(),
        f"rates must lie in [0, 1]; at progress {progress} they go from {rates_B.min():g} to {rates_B.max():g}",
    )
    return rates_B


def _global_state() -> tuple[object, ...]:
    # numpy's and Python's generators too, since a schedule may use any of the three.
    _, keys, *place = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), np.asarray(keys).tobytes(), place, random.getstate()
