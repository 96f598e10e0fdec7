"""What decoding by CUDA graphs keeps, without a GPU: recordings that record nothing."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from rearkit.sampling.graphs import GraphedBackbone, Recording


class Graph:
    def replay(self) -> None:
        """Do nothing."""


class Backbone(GraphedBackbone):
    """Notes, at each recording, how many of the earlier ones are still held."""

    def __init__(self) -> None:
        nothing: Any = None
        super().__init__(nothing, num_tokens=1)
        self.made: list[weakref.ref[Recording]] = []
        self.alive: list[int] = []

    def _record(self, classes_B: Tensor, distinct: int) -> Recording:
        self.alive.append(sum(reference() is not None for reference in self.made))
        room = torch.zeros(distinct, dtype=torch.int64)
        graphs: list[Any] = [Graph()]
        same = torch.zeros_like(classes_B)
        recording = Recording(classes_B.clone(), room, same, same.clone(), graphs, [torch.zeros(len(classes_B), 2)])
        self.made.append(weakref.ref(recording))
        return recording


def test_a_recording_for_more_classes_is_made_once_the_smaller_one_is_gone() -> None:
    backbone = Backbone()
    for classes in ([1, 1, 1], [1, 2, 1], [1, 2, 3], [3, 2, 1]):
        backbone.start(torch.tensor(classes))
    assert backbone.alive == [0, 0, 0]
    backbone.start(torch.tensor([1, 2]))
    assert backbone.alive == [0, 0, 0, 1]
