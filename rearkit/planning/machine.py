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
        node: accelerators of one node.
        within: bytes a second that an accelerator sends to others of its node.
        between: bytes a second that it sends to other nodes.
    """

    ranks: int
    memory: float
    tflops: float
    utilisation: float
    reserve: float = 0.1
    cuda: bool = True
    node: int = 8
    within: float = 300e9
    between: float = 25e9

    @property
    def bandwidth(self) -> float:
        """Bytes a second that an accelerator sends in a collective of all ranks: as the slowest link of the ring."""
        return self.within if self.ranks <= self.node else self.between

    @property
    def usable(self) -> float:
        """Bytes of one accelerator that training may use."""
        return self.memory * (1 - self.reserve)
