"""Decoding by CUDA graphs: each step is recorded once, and replayed with a single call from then on.

A step of a few rows consists of hundreds of small kernels, which the CPU launches more slowly than the GPU runs them.
On an H100, S in bf16 at batch 64 makes 159 images a second of tokens; a plain sampler without graphs 8.9 (docs/gpu.md).
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from rearkit.contracts import Backbone
from rearkit.layers.distinct_classes import known_distinct
from rearkit.layers.fusing import fusing

# Distinct classes for which a recording has room, at least.
FEWEST = 8


@attrs.define(eq=False)
class Recording:
    """The graphs of all steps for one number of rows, and the tensors that they read and write.

    Attributes:
        classes_B: (B,) int64, the input of the first graph.
        distinct_U: (U,) int64, the distinct classes among them; what is left is filled with class 0.
        row_B: (B,) int64, which of these each row has.
        tokens_B: (B,) int64, the input of all others.
        graphs: one per token, since a graph fixes the length of the cache that its step reads.
        logits_BV: the output of each graph.
        next: index of the graph to replay next.
    """

    classes_B: Tensor
    distinct_U: Tensor
    row_B: Tensor
    tokens_B: Tensor
    graphs: list[torch.cuda.CUDAGraph] = attrs.field(factory=list)
    logits_BV: list[Tensor] = attrs.field(factory=list)
    next: int = 0

    def replay(self) -> Tensor:
        """Run the next step and return its logits, (B, V)."""
        self.graphs[self.next].replay()
        self.next += 1
        return self.logits_BV[self.next - 1]


class GraphedBackbone:
    """A backbone on CUDA whose `start` and `step` (see `rearkit.contracts.Backbone`) replay graphs.

    A number of rows is recorded when it first occurs. Only one batch can be decoded at a time, and a step's logits are
    valid until the same step of the next batch. Weights may be changed in place between batches.

    Args:
        backbone: in eval mode. Its `start` and `step` must neither copy from the host nor read the content of tensors.
        num_tokens: N.
        fuse: whether its parts that are `rearkit.layers.fusing.fusable` are compiled.
    """

    def __init__(self, backbone: Backbone, num_tokens: int, fuse: bool = False) -> None:
        self.backbone, self.num_tokens, self.fuse = backbone, num_tokens, fuse
        self.recordings: dict[int, Recording] = {}

    def start(self, classes_B: Tensor) -> tuple[Tensor, Recording]:
        """Begin decoding, as the contract says."""
        # Once a batch, this waits for the device.
        distinct_U, row_B = classes_B.unique(return_inverse=True)
        recording = self.recordings.get(len(classes_B))
        if recording is None or len(distinct_U) > len(recording.distinct_U):
            # Released first, under both names, since a second cache may be more than fits.
            self.recordings.pop(len(classes_B), None)
            recording = None
            recording = self._record(classes_B, len(distinct_U))
            self.recordings[len(classes_B)] = recording
        # A graph reads and writes at fixed addresses, so inputs are copied to where it was recorded.
        recording.classes_B.copy_(classes_B)
        recording.distinct_U[: len(distinct_U)].copy_(distinct_U)
        recording.row_B.copy_(row_B)
        recording.next = 0
        return recording.replay(), recording

    def step(self, tokens_B: Tensor, cache: Recording) -> Tensor:
        """Append a token, as the contract says."""
        cache.tokens_B.copy_(tokens_B)
        return cache.replay()

    @torch.no_grad()
    def _record(self, classes_B: Tensor, distinct: int) -> Recording:
        # With room for more, so that batches of a few more classes do not need another recording.
        room = min(len(classes_B), max(FEWEST, 1 << (distinct - 1).bit_length()))
        rows_B = torch.zeros_like(classes_B)
        recording = Recording(classes_B.clone(), classes_B.new_zeros(room), rows_B, rows_B.clone())
        with fusing(self.fuse), known_distinct(recording.distinct_U, recording.row_B):
            return self._record_steps(recording)

    def _record_steps(self, recording: Recording) -> Recording:
        self._warm_up(recording)
        # One pool for all graphs: they run in the order of their recording, so they can share memory.
        pool = torch.cuda.graph_pool_handle()
        cache: Any = None
        for i in range(self.num_tokens):
            graph = torch.cuda.CUDAGraph()
            # Another thread may be decoding images. In the default mode, its calls to CUDA could end this recording.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                if i == 0:
                    logits_BV, cache = self.backbone.start(recording.classes_B)
                else:
                    logits_BV = self.backbone.step(recording.tokens_B, cache)
            recording.graphs.append(graph)
            recording.logits_BV.append(logits_BV)
        return recording

    def _warm_up(self, recording: Recording) -> None:
        """Run `start` and `step` once, since libraries cannot initialise themselves while a graph is recorded."""
        # On a stream of its own, as torch's documentation of graphs does it.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            _, cache = self.backbone.start(recording.classes_B)
            if self.num_tokens > 1:
                self.backbone.step(recording.tokens_B, cache)
        torch.cuda.current_stream().wait_stream(stream)
