"""Decoding by CUDA graphs: each step is recorded once and then replayed with one call.

A step of a few rows is hundreds of small kernels, which take the CPU longer to launch than the GPU to run.
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from rearkit.contracts import Backbone


@attrs.define(eq=False)
class Recording:
    """The graphs of all steps for one number of rows, and the tensors that they read and write.

    Attributes:
        classes_B: read by the first graph.
        tokens_B: read by the others.
        graphs: one a token.
        logits_BV: what each of them writes.
        next: which of them comes next.
    """

    classes_B: Tensor
    tokens_B: Tensor
    graphs: list[torch.cuda.CUDAGraph] = attrs.field(factory=list)
    logits_BV: list[Tensor] = attrs.field(factory=list)
    next: int = 0

    def replay(self) -> Tensor:
        """Run the next step."""
        self.graphs[self.next].replay()
        self.next += 1
        return self.logits_BV[self.next - 1]


class GraphedBackbone:
    """A backbone on CUDA with the `start` and `step` of `rearkit.contracts.Backbone`, by graphs.

    Each number of rows is recorded when it first comes. One batch can be decoded at a time, and a step's logits hold
    until that step of the next batch. Weights may change in place in between.

    Args:
        backbone: in eval mode; its start and step copy nothing from the host, nor look at the content of tensors.
        num_tokens: N.
    """

    def __init__(self, backbone: Backbone, num_tokens: int) -> None:
        self.backbone, self.num_tokens = backbone, num_tokens
        self.recordings: dict[int, Recording] = {}

    def start(self, classes_B: Tensor) -> tuple[Tensor, Recording]:
        """Begin decoding; see the contract."""
        recording = self.recordings.get(len(classes_B))
        if recording is None:
            recording = self.recordings[len(classes_B)] = self._record(classes_B)
        recording.classes_B.copy_(classes_B)
        recording.next = 0
        return recording.replay(), recording

    def step(self, tokens_B: Tensor, cache: Recording) -> Tensor:
        """Append a token; see the contract."""
        cache.tokens_B.copy_(tokens_B)
        return cache.replay()

    @torch.no_grad()
    def _record(self, classes_B: Tensor) -> Recording:
        recording = Recording(classes_B.clone(), torch.zeros_like(classes_B))
        self._warm_up(recording)
        pool = torch.cuda.graph_pool_handle()
        cache: Any = None
        for i in range(self.num_tokens):
            graph = torch.cuda.CUDAGraph()
            # Another thread may be decoding images meanwhile, which must not end the recording.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                if i == 0:
                    logits_BV, cache = self.backbone.start(recording.classes_B)
                else:
                    logits_BV = self.backbone.step(recording.tokens_B, cache)
            recording.graphs.append(graph)
            recording.logits_BV.append(logits_BV)
        return recording

    def _warm_up(self, recording: Recording) -> None:
        """Let libraries set themselves up, which they cannot do while a graph is recorded."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _, cache = self.backbone.start(recording.classes_B)
            if self.num_tokens > 1:
                self.backbone.step(recording.tokens_B, cache)
        torch.cuda.current_stream().wait_stream(stream)
