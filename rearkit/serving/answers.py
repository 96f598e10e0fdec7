"""What is told of a job: as JSON, as events while it is drawn, as a manifest of its images."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs

from rearkit.sampling.manifest import Manifest
from rearkit.serving.jobs import Job, Jobs
from rearkit.serving.served import Served
from rearkit.serving.wishes import Drawing

# Seconds after which a quiet connection says that it is alive; proxies close those that say nothing.
QUIET_S = 15.0


@attrs.frozen(eq=False)
class Answers:
    """What is told of the jobs of a server."""

    served: Served
    jobs: Jobs

    def job(self, job: Job, whole: bool = False) -> dict[str, Any]:
        """Return a job as JSON; with ``whole``, the images are in it."""
        place = f"/v1/jobs/{job.id}"
        found: dict[str, Any] = {"id": job.id, "url": place, "status": job.status, "error": job.error}
        found["before"] = self.jobs.before(job) if job.status == "waiting" else 0
        found["images"] = [
            {
                **about,
                "url": None if image is None else f"{place}/images/{k}.png",
                **({} if image is None or not whole else {"png": base64.b64encode(image).decode()}),
            }
            for k, (image, about) in enumerate(zip(job.images, self._images(job), strict=True))
        ]
        if isinstance(job.wish, Drawing):
            found |= {
                "manifest": f"{place}/manifest.json",
                "link": job.wish.link(),
                "command": job.wish.command(self.served.model.classes.titles, self.served.size),
            }
        return {**found, "request": job.wish.content(), **job.facts}

    def _images(self, job: Job) -> list[dict[str, Any]]:
        if not isinstance(job.wish, Drawing):
            return [{"name": name} for name in job.wish.pictures]
        names = self.served.model.classes.titles
        return [
            {"class": label, "name": names[label], "seed": job.wish.seed, "number": number}
            for label, number in job.wish.images
        ]

    def manifest(self, job: Job) -> Manifest:
        """Return what made the images of a drawing."""
        wish = job.wish
        assert isinstance(wish, Drawing)
        counts = [0] * self.served.model.num_classes
        for label, _ in wish.images:
            counts[label] += 1
        base = self.served.manifest
        sample = {**base["recipe"]["sample"], "seed": wish.seed, "num_images": wish.size}
        sample |= {name: value for name, value in wish.content().items() if name in sample}
        edit = wish.edit
        return {
            **base,
            "seeds": {**base["seeds"], "seed": wish.seed, "first_sample": wish.first},
            "num_images": wish.size,
            "counts_per_class": counts,
            "recipe": {**base["recipe"], "sample": sample},
            "images": [{"class": label, "number": number} for label, number in wish.images],
            **({} if edit is None else {"edit": {"photo": edit.name, "mask": edit.mask.text, "fade": edit.fade}}),
        }

    async def events(self, job: Job) -> AsyncIterator[str]:
        """Yield a job's progress as server-sent events, from its beginning, until it ends."""
        told = _Told(job)
        while not self.jobs.stopping:
            # Before the job is looked at, so that a change after that is not missed.
            changed = job.changed
            live = job.live
            state = {"status": job.status, "before": self.jobs.before(job) if job.status == "waiting" else 0}
            for event in told.news(state):
                yield event
            if not live:
                yield _event("end", self.job(job))
                return
            try:
                await asyncio.wait_for(changed.wait(), QUIET_S)
            except asyncio.TimeoutError:
                yield ": still here\n\n"


class _Told:
    """What one connection has been told of a job already."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.state: dict[str, Any] = {}
        self.tokens = [0] * job.wish.size
        self.previews = [0] * job.wish.size
        self.images: set[int] = set()

    def news(self, state: dict[str, Any]) -> Iterator[str]:
        if state != self.state:
            self.state = state
            yield _event("state", state)
        for k, image in enumerate(list(self.job.images)):
            # The thread that draws puts a new list or image in its place, and changes none.
            tokens, preview = self.job.tokens[k], self.job.previews[k]
            if len(tokens) > self.tokens[k]:
                yield _event("tokens", {"image": k, "first": self.tokens[k], "tokens": tokens[self.tokens[k] :]})
                self.tokens[k] = len(tokens)
            if preview is not None and preview[0] > self.previews[k]:
                self.previews[k] = preview[0]
                uri = "data:image/jpeg;base64," + base64.b64encode(preview[1]).decode()
                yield _event("preview", {"image": k, "tokens": preview[0], "uri": uri})
            if image is not None and k not in self.images:
                self.images.add(k)
                yield _event("image", {"image": k, "url": f"/v1/jobs/{self.job.id}/images/{k}.png"})


def _event(name: str, content: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
