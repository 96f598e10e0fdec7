"""The HTTP interface: FastAPI's routes, each a few lines, since what they do stands in the other files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from rearkit.data.image_bytes import png_bytes
from rearkit.errors import RearkitError
from rearkit.serving.answers import Answers
from rearkit.serving.jobs import FullError, Job, Jobs
from rearkit.serving.limits import Limits
from rearkit.serving.pages import INTERFACE, KINDS, PAGE, loaded, page
from rearkit.serving.schema import ImageRequest, RebuildRequest
from rearkit.serving.served import Served
from rearkit.serving.uploads import Photos
from rearkit.serving.wishes import Drawing, Rebuilding, drawing_of
from rearkit.stages.data import decoding_of

DESCRIPTION = "Images of a trained model: drawn by class, parts of a photo drawn anew, photos encoded and decoded."
FILE = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
UPLOADED = {"requestBody": {"required": True, "content": FILE}}
# Seconds between looks at whether somebody who waits for an answer is still there.
LOOK_S = 0.5


class Desk:
    """The routes of a server.

    Args:
        served: the model.
        jobs: the queue, and what is kept.
        limits: of the server.
        version: of rearkit.
    """

    def __init__(self, served: Served, jobs: Jobs, limits: Limits, version: str) -> None:
        self.served, self.jobs, self.limits = served, jobs, limits
        self.answers = Answers(served, jobs)
        self.photos = Photos(decoding_of(served.model.recipe, served.model.tokenizer.image_size), limits)
        self.about = {
            **served.about(),
            "limits": {"images": limits.images, "waiting": limits.waiting, "upload_bytes": limits.upload_bytes},
        }
        # Its own pages instead of FastAPI's, which load scripts from elsewhere.
        self.app = FastAPI(title="rearkit", version=version, description=DESCRIPTION, docs_url=None, redoc_url=None)
        self._add_routes()
        self._add_errors()

    def _add_routes(self) -> None:
        app = self.app
        app.get("/", include_in_schema=False)(self.show)
        app.get("/docs", include_in_schema=False)(self.docs)
        app.get("/page/{name}", include_in_schema=False)(self.file)
        app.get("/v1/model", summary="The model: classes, sizes, defaults, limits")(self.model)
        app.post("/v1/photos", status_code=201, summary="Upload a photo", openapi_extra=UPLOADED)(self.upload)
        app.get("/v1/photos/{name}.png", summary="A photo as the model sees it", response_class=Response)(self.photo)
        app.post("/v1/images", status_code=202, summary="Draw images, or parts of a photo")(self.draw)
        app.post("/v1/reconstructions", status_code=202, summary="Encode and decode a photo")(self.rebuild)
        app.get("/v1/jobs/{id}", summary="A request and its images")(self.job)
        app.delete("/v1/jobs/{id}", summary="Drop a request")(self.cancel)
        app.get("/v1/jobs/{id}/events", summary="Its progress, as server-sent events", response_class=Response)(
            self.events
        )
        app.get("/v1/jobs/{id}/images/{k}.png", summary="One of its images", response_class=Response)(self.image)
        app.get("/v1/jobs/{id}/manifest.json", summary="What made its images")(self.manifest)

    def _add_errors(self) -> None:
        app = self.app

        @app.exception_handler(FullError)
        async def full(request: Request, error: FullError) -> JSONResponse:
            return _error(429, str(error), {"retry-after": str(error.retry_s)})

        @app.exception_handler(RearkitError)
        async def mistaken(request: Request, error: RearkitError) -> JSONResponse:
            return _error(400, " ".join(str(error).split()))

        @app.exception_handler(RequestValidationError)
        async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
            return _error(422, "; ".join(map(_told, error.errors())))

        @app.exception_handler(HTTPException)
        async def other(request: Request, error: HTTPException) -> JSONResponse:
            return _error(error.status_code, str(error.detail))

        @app.exception_handler(Exception)
        async def broken(request: Request, error: Exception) -> JSONResponse:
            return _error(500, "internal error; the server's terminal says more")

    async def show(self, request: Request) -> HTMLResponse:
        """The page."""
        # A link draws at once where somebody opened it, but not where another site made the browser do so.
        foreign = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        return HTMLResponse(page(PAGE, about=self.about, foreign=foreign), headers={"cache-control": "no-store"})

    async def docs(self) -> HTMLResponse:
        """The page about the interface."""
        return HTMLResponse(page(INTERFACE, api=self.app.openapi()))

    async def file(self, name: str) -> Response:
        """A file that the page loads."""
        if name not in KINDS:
            raise HTTPException(404, "no such file")
        return Response(loaded(name), media_type=KINDS[name], headers={"cache-control": "no-cache"})

    async def model(self) -> dict[str, Any]:
        """`defaults` are those of the recipe; `colours` are three bytes a code, in base64, to show tokens with."""
        return self.about

    async def upload(self, request: Request) -> JSONResponse:
        """Send the file itself as the body: a PNG, JPEG, WebP and the like.

        It is cut to the model's size, upright, and kept for a while, by its content.
        """
        name, photo = await run_in_threadpool(self.photos.add, await request.body())
        _, height, width = photo.shape
        found = {"id": name, "url": f"/v1/photos/{name}.png", "width": width, "height": height}
        return JSONResponse(found, 201)

    async def photo(self, name: str) -> Response:
        """It has the model's size."""
        return _png(png_bytes(self.photos.find(name).permute(1, 2, 0).numpy()))

    async def draw(self, wanted: ImageRequest, request: Request, wait: bool = False) -> JSONResponse:
        """Answers at once, with where the images will be; with `wait=true` when they are there, and with them in it."""
        wish = await run_in_threadpool(drawing_of, wanted, self.served, self.photos, self.limits)
        return await self._begin(wanted.id, wish, request, wait)

    async def rebuild(self, wanted: RebuildRequest, request: Request, wait: bool = False) -> JSONResponse:
        """Four pictures: the photo, its tokens, the reconstruction, the difference; and PSNR and SSIM."""
        return await self._begin(wanted.id, Rebuilding(self.photos.find(wanted.photo), wanted.photo), request, wait)

    async def _begin(self, name: str | None, wish: Drawing | Rebuilding, request: Request, wait: bool) -> JSONResponse:
        job = self.jobs.add(Job(name or secrets.token_urlsafe(16), wish))
        # Whoever does not wait will ask for it, and is never seen to go.
        job.waiters += 1
        if not wait:
            return JSONResponse(self.answers.job(job), 202, {"location": f"/v1/jobs/{job.id}"})
        try:
            while job.live and not self.jobs.stopping:
                changed = job.changed
                if await request.is_disconnected():
                    break
                if job.live:
                    await _within(changed, LOOK_S)
        finally:
            job.waiters -= 1
            # Whoever lost the connection may have sent the same again, and wait on another.
            if job.live and not job.waiters and not self.jobs.stopping:
                self.jobs.cancel(job)
        if self.jobs.stopping:
            raise HTTPException(503, "the server is being stopped")
        return JSONResponse(self.answers.job(job, whole=True), 500 if job.status == "failed" else 200)

    def _found(self, name: str) -> Job:
        job = self.jobs.find(name)
        if job is None:
            raise HTTPException(404, "no such request, or its results are not kept any more")
        return job

    async def job(self, id: str) -> dict[str, Any]:
        """Its status is waiting, running, done, failed or cancelled; images that are finished have a URL."""
        return self.answers.job(self._found(id))

    async def cancel(self, id: str) -> dict[str, Any]:
        """What is not drawn yet is not drawn any more; images that are finished stay."""
        job = self._found(id)
        self.jobs.cancel(job)
        return self.answers.job(job)

    async def events(self, id: str) -> StreamingResponse:
        """Events `state`, `tokens`, `preview`, `image`, from the beginning each time, and `end` with the whole."""
        told = self.answers.events(self._found(id))
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(told, media_type="text/event-stream", headers=headers)

    async def image(self, id: str, k: int) -> Response:
        """They are counted from 0, class by class, in the order of the request."""
        images = self._found(id).images
        found = images[k] if 0 <= k < len(images) else None
        if found is None:
            raise HTTPException(404, "no such image, or not yet")
        return _png(found)

    async def manifest(self, id: str) -> Response:
        """Hashes of the weights, versions, the recipe with all settings, seed, class and number of each image."""
        job = self._found(id)
        if not isinstance(job.wish, Drawing):
            raise HTTPException(404, "a reconstruction has no manifest")
        headers = {"content-disposition": f'attachment; filename="{job.id}.json"'}
        text = json.dumps(self.answers.manifest(job), indent=2) + "\n"
        return Response(text, media_type="application/json", headers=headers)


async def _within(changed: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(changed.wait(), seconds)


def _png(content: bytes) -> Response:
    return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text or HTTPStatus(status).phrase}, status, headers)


def _told(problem: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors as a few words, without the value, which may be long."""
    where = ".".join(str(part) for part in problem["loc"] if part != "body" and isinstance(part, str | int))
    return f"{where or 'body'}: {problem['msg']}"
