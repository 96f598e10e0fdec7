"""What a server refuses, drops and forgets."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

from rearkit.serving.jobs import Job, Jobs
from rearkit.serving.limits import Limits
from rearkit.serving.origins import Door, own_names, refusal
from rearkit.serving.wishes import Rebuilding

WANTED = {"classes": [1]}


@pytest.fixture(scope="module")
def narrow(serving: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    """A server that draws one image at a time, and lets one request wait."""
    yield from serving(batch=1, waiting=1, upload_bytes=20_000, upload_pixels=10_000, json_bytes=5_000, kept_jobs=3)


@pytest.fixture
def held(narrow: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Batches stand still, token by token, until the event is set."""
    go = threading.Event()
    draw = narrow.served.sampler.tokens

    def slow(rows: Any, watch: Callable[..., None], table: Any) -> Any:
        def looking(tokens: Any) -> None:
            while not go.wait(0.01):
                watch(tokens)

        return draw(rows, looking, table)

    with monkeypatch.context() as patch:
        patch.setattr(narrow.served.sampler, "tokens", slow)
        yield go
        go.set()
        until(lambda: not any(job.live for job in narrow.server.jobs._jobs.values()))


def until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not found():
        assert time.monotonic() < end
        time.sleep(0.005)


def status(client: Any, job: Any) -> str:
    found: str = client.get(job["url"]).json["status"]
    return found


def test_more_than_may_wait_are_told_when_to_come_again(narrow: Any, held: threading.Event) -> None:
    first = narrow.ask("POST", "/v1/images", WANTED).json
    until(lambda: status(narrow, first) == "running")
    second = narrow.ask("POST", "/v1/images", WANTED)
    assert second.status == 202 and second.json["before"] == 1
    assert second.headers["location"] == second.json["url"]
    third = narrow.ask("POST", "/v1/images", WANTED)
    assert third.status == 429 and int(third.headers["retry-after"]) >= 1
    assert third.json["error"].startswith("1 requests wait already")
    held.set()
    until(lambda: status(narrow, second.json) == "done")


def test_what_is_cancelled_is_not_drawn(narrow: Any, held: threading.Event) -> None:
    first = narrow.ask("POST", "/v1/images", WANTED).json
    until(lambda: status(narrow, first) == "running")
    second = narrow.ask("POST", "/v1/images", WANTED).json
    assert narrow.ask("DELETE", second["url"]).json["status"] == "cancelled"
    assert narrow.ask("DELETE", first["url"]).json["status"] == "cancelled"
    third = narrow.ask("POST", "/v1/images", WANTED).json  # has its turn though the first has not been let go
    until(lambda: status(narrow, third) == "running")
    held.set()
    until(lambda: status(narrow, third) == "done")
    assert narrow.get(f"{first['url']}/images/0.png").status == 404


@contextlib.contextmanager
def waiting(narrow: Any, name: str) -> Iterator[Job]:
    """Somebody who waits for a request of this id, until the connection breaks at the end."""
    body = json.dumps({**WANTED, "id": name}).encode()
    with socket.create_connection(("127.0.0.1", narrow.port)) as line:
        head = f"POST /v1/images?wait=true HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        line.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        until(lambda: narrow.get(f"/v1/jobs/{name}").status == 200)
        yield narrow.server.jobs.find(name)


def test_whoever_waits_and_goes_is_dropped(narrow: Any, held: threading.Event) -> None:
    with waiting(narrow, "somebody-impatient") as job:
        pass
    until(lambda: job.status == "cancelled")


def test_whoever_loses_a_connection_and_asks_again_is_not_dropped(narrow: Any, held: threading.Event) -> None:
    with ThreadPoolExecutor(1) as pool:
        with waiting(narrow, "somebody-persistent") as job:
            again = pool.submit(narrow.draw, **WANTED, id="somebody-persistent")
            until(lambda: job.waiters == 2)
        until(lambda: job.waiters == 1)
        held.set()
        assert again.result()["status"] == "done"


def test_what_somebody_asked_for_without_waiting_is_not_dropped(narrow: Any, held: threading.Event) -> None:
    wanted = {**WANTED, "id": "somebody-elsewhere"}
    assert narrow.ask("POST", "/v1/images", wanted).status == 202
    with waiting(narrow, wanted["id"]) as job:
        until(lambda: job.waiters == 2)
    until(lambda: job.waiters == 1)
    assert job.live


def test_what_was_dropped_can_be_asked_for_again(narrow: Any, held: threading.Event) -> None:
    with waiting(narrow, "somebody-returning") as job:
        pass
    until(lambda: job.status == "cancelled")
    held.set()
    assert narrow.draw(**WANTED, id="somebody-returning")["status"] == "done"


def test_a_request_that_is_sent_twice_is_done_once(narrow: Any) -> None:
    wanted = {**WANTED, "id": "0123456789abcdef"}
    first, again = (narrow.ask("POST", "/v1/images?wait=true", wanted).json for _ in range(2))
    assert first == again and first["id"] == wanted["id"]
    other = narrow.ask("POST", "/v1/images", {**wanted, "seed": 7})
    assert (other.status, other.json["error"]) == (400, "id: another request has this id; choose another")


def test_the_oldest_results_are_forgotten(narrow: Any) -> None:
    jobs = [narrow.draw(**WANTED, seed=seed) for seed in range(5)]
    assert [narrow.get(job["url"]).status for job in jobs] == [404, 200, 200, 200, 200]


def test_the_settings_of_one_spoil_nobody_elses_images(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = client.served.sampler.tokens

    def failing(rows: Any, *more: Any) -> Any:
        if 5.0 in rows.scale_B:
            raise RuntimeError("a secret")
        return draw(rows, *more)

    monkeypatch.setattr(client.served.sampler, "tokens", failing)
    jobs = [client.ask("POST", "/v1/images", {"classes": [1], "guidance_scale": s}).json for s in (2.0, 5.0, 3.0)]
    until(lambda: all(status(client, job) not in ("waiting", "running") for job in jobs))
    assert [status(client, job) for job in jobs] == ["done", "failed", "done"]
    assert client.get(jobs[1]["url"]).json["error"] == "internal error; the server's terminal says more"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says that it has so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (bomb(100_000, 100_000), 400, "photo: image cannot be decoded"),
        (bomb(200, 100), 400, "photo: image of 200 × 100 pixels; at most"),
        (bomb(4000, 2), 400, "photo: image is more than 32 times as long as it is wide"),
        (bomb(50, 50), 400, "photo: image is cut off"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 400, "photo: image cannot be decoded"),
        (b"", 400, "photo: image cannot be decoded"),
        (b"\x89PNG" + bytes(20_000), 413, "larger than 20,000 bytes"),
    ],
)
def test_uploads_that_would_do_harm_are_refused(content: bytes, code: int, message: str, narrow: Any) -> None:
    found = narrow.ask("POST", "/v1/photos", content)
    assert found.status == code and found.body.count(b"\n") <= 1
    assert found.json["error"].startswith(message)


def test_a_body_without_an_end_is_cut_off(narrow: Any) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=10) as line:
        line.sendall(b"POST /v1/photos HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            line.sendall(b"2000\r\n" + bytes(0x2000) + b"\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        ({"classes": ["elephant"]}, 400, "classes: no class 'elephant'"),
        ({"classes": [1], "count": 17}, 400, "count: 1 × 17 images; at most 16"),
        ({"classes": [1], "top_p": 0}, 422, "top_p: Input should be greater than 0"),
        ({"classes": [1], "temprature": 1}, 422, "temprature: Extra inputs"),
        ({"classes": [1], "keep": "top"}, 400, "mask, keep, fade: they say what to do with a photo"),
        ({"classes": [1], "photo": "0" * 32, "keep": "top"}, 400, "photo: not kept here"),
        ({"classes": ["x" * 6000]}, 413, "larger than 5,000 bytes"),
        (b'{"classes": [1], "guidance_scale": NaN}', 422, "guidance_scale: "),
        (b"no JSON", 422, ""),
    ],
)
def test_mistakes_are_answered_in_a_line(wanted: Any, code: int, message: str, narrow: Any) -> None:
    found = narrow.ask("POST", "/v1/images", wanted)
    assert (found.status, list(found.json)) == (code, ["error"])
    assert message in found.json["error"] and "\n" not in found.json["error"]


def test_a_mask_must_be_as_large_as_the_models_images(narrow: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()).save(buffer, format="png")
    photo = narrow.ask("POST", "/v1/photos", buffer.getvalue()).json["id"]
    for mask, message in (("!", "mask: not base64"), ("aGVsbG8", "mask: image cannot be"), (None, "give mask or keep")):
        found = narrow.ask("POST", "/v1/images", {"classes": [1], "photo": photo, "mask": mask})
        assert found.status == 400 and message in found.json["error"]


OWN = own_names("127.0.0.1", ["images.example.org"])


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"host": "localhost:8000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, False),
        ({"host": "[::1]:8000"}, False),
        ({"host": "images.example.org", "origin": "https://images.example.org"}, False),
        ({"host": "evil.example.org:8000"}, True),  # a name that was made to mean this machine
        ({"host": "localhost.evil.org"}, True),
        ({"host": "x@localhost"}, True),
        ({"host": ""}, True),
        ({"host": "localhost:8000", "origin": "http://evil.example.org"}, True),
        ({"host": "localhost:8000", "origin": "http://localhost:9000"}, True),  # another program of this machine
        ({"host": "localhost:8000", "origin": "null"}, True),
        ({"host": "localhost:8000", "sec-fetch-site": "cross-site"}, True),
        ({"host": "localhost:8000", "sec-fetch-site": "same-origin"}, False),
    ],
)
def test_other_sites_do_not_drive_it(headers: dict[str, str], refused: bool) -> None:
    assert bool(refusal(headers, OWN, navigates=False)) == refused


def test_another_sites_page_is_refused_but_may_link(client: Any) -> None:
    evil = {"origin": "http://evil.example.org"}
    assert client.ask("POST", "/v1/images", WANTED, **evil).status == 403
    assert client.get("/v1/model", host="evil.example.org").status == 403
    assert client.get("/v1/model", sec_fetch_site="cross-site").status == 403
    linked = client.get("/?classes=1", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    assert linked.status == 200 and b"data-foreign" in linked.body  # so that it does not draw by itself
    assert b"data-foreign" not in client.get("/?classes=1", sec_fetch_site="none").body
    assert "frame-ancestors 'none'" in linked.headers["content-security-policy"]


def test_pages_load_nothing_from_elsewhere(client: Any) -> None:
    pages = [client.get(path) for path in ("/", "/docs", "/page/page.css", "/page/start.js", "/openapi.json")]
    assert [page.status for page in pages] == [200] * 5
    for page in pages:
        assert b'src="http' not in page.body and b"url(" not in page.body and b"https://" not in page.body
    assert client.get("/page/..%2fapp.py").status == 404
    assert "/v1/images" in pages[-1].json["paths"]


def answered(door: Door, receive: Callable[[], Any]) -> list[Any]:
    """Send an upload to a door whose application never answers; return what it sends."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/photos", "headers": [(b"host", b"localhost")]}
        await door(scope, receive, send)

    asyncio.run(ask())
    return sent


async def never(*_: Any) -> Any:
    await asyncio.sleep(60)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    sent = answered(Door(never, Limits(body_s=0.01), OWN), never)
    assert sent[0]["status"] == 408 and b"did not arrive" in sent[1]["body"]


def test_more_uploads_than_may_be_at_once_are_refused() -> None:
    door = Door(never, Limits(uploads=1, body_s=0.01), OWN)
    door.uploading = 1
    sent = answered(door, never)
    assert sent[0]["status"] == 429 and (b"retry-after", b"5") in sent[0]["headers"]
    door.uploading = 0
    answered(door, never)
    assert door.uploading == 0


@pytest.mark.parametrize("limits", [{"kept_bytes": 10}, {"kept_s": -1.0}])
def test_results_are_dropped_by_their_size_and_age(limits: dict[str, Any]) -> None:
    jobs = Jobs(Limits(**limits), None)  # type: ignore[arg-type]
    jobs.tell = lambda job: None  # type: ignore[method-assign]
    added = []
    for k in range(3):
        job = jobs.add(Job(f"{k}" * 16, Rebuilding(torch.zeros(3, 8, 8), "photo")))
        added.append(job)
        job.images = [b"123456"]
        jobs.finish(job)
    jobs.add(Job("x" * 16, Rebuilding(torch.zeros(3, 8, 8), "photo")))
    kept = [jobs.find(job.id) is not None for job in added]
    assert kept == ([False, False, True] if "kept_bytes" in limits else [False] * 3)
