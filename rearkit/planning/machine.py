"""The machines that a plan is for."""

from __future__ import annotations

import attrs


@attrs.frozen
class Machine:
    """The machines that a plan is for.

    Attributes:
        ranks: number of accelerators, over all nodes.
        memory: of one accelerator, in bytes.
        tflops: peak of one accelerator in the recipe's precision, in 10^12 operations a second.
        utilisation: share of the peak that training reaches, in (0, 1].
        reserve: share of the memory kept free for driver, libraries and fragmentation, in [0, 1).
        cuda: True for accelerators, False for CPUs.
    """

    ranks: int
    memory: float
    tflops: float
    utilisation: float
    reserve: float = 0.1
    cuda: bool = True

    @property
    def usable(self) -> float:
        """Bytes of one accelerator that training may use."""
        return self.memory * (1 - self.reserve)
