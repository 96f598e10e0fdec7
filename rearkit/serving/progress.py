"""What people see of a batch while it is drawn: its tokens row by row, and now and then what they decode to.

Shapes: B images, N tokens, V codes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from rearkit.serving.jobs import Job, Jobs
from rearkit.serving.served import Served
from rearkit.serving.uploads import jpeg

# Share of the time that decoding unfinished images may take.
PREVIEW_SHARE = 0.25


class Progress:
    """Watches a batch, as `rearkit.sampling.sampler.Sampler.tokens` lets it.

    Args:
        served: the model.
        jobs: told of each row.
        batch: the images, each a job and its index.
        decode_s: seconds that decoding one image takes; None if that is not known yet, or not worth it.
    """

    def __init__(self, served: Served, jobs: Jobs, batch: Sequence[tuple[Job, int]], decode_s: float | None) -> None:
        self.served, self.jobs, self.batch, self.decode_s = served, jobs, batch, decode_s
        self.tokens: list[Tensor] = []
        _, self.every = served.grid or (1, 16)
        # The code next to the codebook's middle stands for tokens that are not drawn yet.
        codebook_VZ = served.model.tokenizer.codebook()
        self.blank = int((codebook_VZ - codebook_VZ.mean(0)).pow(2).sum(-1).argmin())
        self.looked = time.monotonic()

    def __call__(self, tokens_B: Tensor) -> None:
        """Take in the next token of each image.

        Raises:
            InterruptedError: nobody wants the images any more, or the server stops.
        """
        if self.jobs.stopping or not any(job.live for job, _ in self.batch):
            raise InterruptedError
        self.tokens.append(tokens_B[: len(self.batch)])
        if len(self.tokens) % self.every == 0:
            self._show()

    def _show(self) -> None:
        # Read once a row: a GPU is waited for each time.
        drawn_Bn = torch.stack(self.tokens, 1).cpu()
        for (job, index), row in zip(self.batch, drawn_Bn.tolist(), strict=True):
            job.tokens[index] = row
        wanted = [i for i, (job, _) in enumerate(self.batch) if job.live]
        if self.decode_s is not None and self.served.grid is not None:
            cost = self.decode_s * len(wanted)
            if (time.monotonic() - self.looked) * PREVIEW_SHARE >= cost:
                self._preview(drawn_Bn, wanted)
                self.looked = time.monotonic()
        for job in {job for job, _ in self.batch}:
            self.jobs.tell(job)

    def _preview(self, drawn_Bn: Tensor, wanted: Sequence[int]) -> None:
        missing = self.served.model.space.num_tokens - drawn_Bn.shape[1]
        whole_BN = torch.nn.functional.pad(drawn_Bn[list(wanted)], (0, missing), value=self.blank)
        for i, image in zip(wanted, self.served.sampler.pixels(whole_BN), strict=True):
            job, index = self.batch[i]
            job.previews[index] = (drawn_Bn.shape[1], jpeg(image))
