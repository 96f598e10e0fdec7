"""The thread that draws: it takes images of several requests together, and hands each out when it is finished."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Sequence

import torch
from torch import Tensor

from rearkit.data.image_bytes import png_bytes
from rearkit.errors import RearkitError
from rearkit.evaluation.rebuilt import reconstruct
from rearkit.sampling.editing import blend, given_tokens
from rearkit.sampling.stepping import fixed_tokens
from rearkit.serving.jobs import Job, Jobs
from rearkit.serving.progress import Progress
from rearkit.serving.served import Served
from rearkit.serving.wishes import Drawing, Rebuilding
from rearkit.system import distributed
from rearkit.system.console import stderr

Batch = Sequence[tuple[Job, int]]


class Worker(threading.Thread):
    """Draws what waits, until the jobs are stopped.

    Args:
        served: the model, which nothing else uses meanwhile.
        jobs: the queue.
    """

    def __init__(self, served: Served, jobs: Jobs) -> None:
        # Not waited for at the end: it looks at each token whether it is to stop, but a token may take long.
        super().__init__(name="drawing", daemon=True)
        self.served, self.jobs = served, jobs
        self.decode_s: float | None = None

    def run(self) -> None:
        """Take batches as long as there are any."""
        distributed.local_device(self.served.sampler.device)
        while batch := self.jobs.take(self.served.batch):
            self._do(batch)

    def _do(self, batch: Batch) -> None:
        jobs = list(dict.fromkeys(job for job, _ in batch))
        for job in jobs:
            self.jobs.tell(job)
        try:
            self._draw(batch)
        except InterruptedError:
            pass
        except Exception as error:
            if len(jobs) > 1:
                # One person's settings must not spoil the images of others: each by itself.
                for job in jobs:
                    self._do([(other, index) for other, index in batch if other is job])
                return
            if not isinstance(error, RearkitError):
                traceback.print_exc(file=stderr.file)
            told = str(error) if isinstance(error, RearkitError) else "internal error; the server's terminal says more"
            self.jobs.fail(jobs[0], told)
        for job in jobs:
            if all(image is not None for image in job.images):
                self.jobs.finish(job)

    @torch.no_grad()
    def _draw(self, batch: Batch) -> None:
        wish = batch[0][0].wish
        if isinstance(wish, Rebuilding):
            self._rebuild(batch[0][0], wish)
            return
        began = time.monotonic()
        sampler = self.served.sampler
        wishes = [job.wish for job, _ in batch]
        images = [one.images[index] for one, (_, index) in zip(wishes, batch, strict=True) if isinstance(one, Drawing)]
        drawings = [one for one in wishes if isinstance(one, Drawing)]
        rows = sampler.rows(
            [label for label, _ in images],
            [number for _, number in images],
            [one.table.guidance_scale for one in drawings],
            self._fixed(drawings),
            [one.seed for one in drawings],
        )
        progress = Progress(self.served, self.jobs, batch, self.decode_s)
        tokens_BN = sampler.tokens(rows, progress, drawings[0].table)
        self._hand_out(batch, tokens_BN)
        seconds = (time.monotonic() - began) / len(batch)
        self.jobs.seconds_an_image = 0.5 * (self.jobs.seconds_an_image + seconds)

    def _fixed(self, drawings: Sequence[Drawing]) -> Tensor | None:
        """Return the tokens that are given, (B, N), or None if nobody edits a photo."""
        if all(one.edit is None for one in drawings):
            return None
        space, sampler = self.served.model.space, self.served.sampler
        known_BN = torch.zeros(len(drawings), space.num_tokens, dtype=torch.bool)
        given_BN = torch.zeros(len(drawings), space.num_tokens, dtype=torch.int64)
        for i, one in enumerate(drawings):
            if one.edit is not None and i and drawings[i - 1] is one:
                given_BN[i], known_BN[i] = given_BN[i - 1], known_BN[i - 1]
            elif one.edit is not None:
                given_BN[i], known_BN[i] = given_tokens(sampler, one.edit.photo, one.edit.mask.kept_HW)
        return fixed_tokens(given_BN, known_BN, (len(drawings), space.num_tokens), space.codebook_size)

    def _hand_out(self, batch: Batch, tokens_BN: Tensor) -> None:
        pixels = self.served.sampler.pixels
        for part, tokens in zip(_split(batch, pixels.at_once), tokens_BN.split(pixels.at_once), strict=True):
            if self.jobs.stopping:
                raise InterruptedError
            began = time.monotonic()
            for (job, index), row, image in zip(part, tokens.tolist(), pixels(tokens), strict=True):
                edit = job.wish.edit if isinstance(job.wish, Drawing) else None
                if edit is not None:
                    image = blend(image[None], edit.photo, edit.mask.kept_HW, edit.fade)[0]
                job.tokens[index] = row
                job.images[index] = png_bytes(image)
                self.jobs.tell(job)
            self.decode_s = (time.monotonic() - began) / len(part)

    def _rebuild(self, job: Job, wish: Rebuilding) -> None:
        (found,) = reconstruct(self.served.model.tokenizer, wish.photo[None])
        job.facts = {"psnr": round(found.psnr, 4), "ssim": round(found.ssim, 5), "codes": len(found.tokens.unique())}
        job.images = [png_bytes(found.pictures[name].permute(1, 2, 0).numpy()) for name in wish.pictures]


def _split(batch: Batch, size: int) -> list[Batch]:
    return [batch[start : start + size] for start in range(0, len(batch), size)]
