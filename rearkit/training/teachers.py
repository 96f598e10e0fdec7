"""Frozen copies of trained modules that follow them as moving averages: the teachers of self-guided training."""

from __future__ import annotations

import attrs
from torch import nn

from rearkit.contracts import Backbone
from rearkit.training.engine import Engine


@attrs.frozen(eq=False)
class Taken:
    """See `rearkit.contracts.StepTaken`."""

    engine: Engine
    backbone: Backbone
    done: int
    progress: float

    def average(self, teacher: nn.Module, student: nn.Module, decay: float) -> None:
        """See `rearkit.contracts.StepTaken.average`."""
        for own, followed in zip(teacher.parameters(), student.parameters(), strict=True):
            # One parameter at a time, so that no more than one is whole where ZeRO divides them.
            target = self.engine.whole(followed).float()
            # Moved too, since a checkpoint's copy comes from the host.
            value = self.engine.whole(own).to(target).lerp(target, 1 - decay)
            self.engine.put(own, value)
            self.engine.show(own, value)
