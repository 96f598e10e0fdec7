"""A server of the tiny model on a free port of loopback, and what asks it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from sharp import sharpened

from rearkit.contracts import Classes
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.serving.limits import Limits
from rearkit.serving.served import Served

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@attrs.frozen(eq=False)
class Reply:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.frozen(eq=False)
class Client:
    """Asks a server, as a program does."""

    server: Any
    port: int
    served: Served

    def ask(self, method: str, path: str, content: Any = None, **headers: str) -> Reply:
        body = content if isinstance(content, bytes) else None if content is None else json.dumps(content).encode()
        kind = {"content-type": "application/json"} if body is not None else {}
        given = {**kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, given, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=60) as found:
                return Reply(found.status, found.headers, found.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers, error.read())

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def draw(self, **wanted: Any) -> Any:
        """Draw images and wait for them; return the job."""
        found = self.ask("POST", "/v1/images?wait=true", wanted)
        assert found.status == 200, found.body
        return found.json


@pytest.fixture(scope="session")
def trained(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, dict[str, Path]]:
    """The tiny model with random weights everywhere, as if it had learnt something sharp; and files of its weights."""
    made = sharpened(build(tiny(), None, Classes(10, NAMES)))
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    file.write_bytes(b"of no use")
    return made, {"backbone": file, "tokenizer": file}


@pytest.fixture(scope="session")
def serving(trained: tuple[Model, dict[str, Path]]) -> Callable[..., Iterator[Client]]:
    """Start a server, of another model or with other limits if they are given; it ends with the iterator."""
    pytest.importorskip("fastapi", reason="the package fastapi is not installed (rearkit[serve])")
    pytest.importorskip("uvicorn", reason="the package uvicorn is not installed (rearkit[serve])")
    from rearkit.serving.server import serve

    def start(batch: int = 8, served: Served | None = None, **limits: Any) -> Iterator[Client]:
        served = served or Served.of(*trained, batch)
        found: list[Client] = []
        listening = threading.Event()

        def ready(server: Any, port: int) -> None:
            found.append(Client(server, port, served))
            listening.set()

        # A daemon, so that a server that does not end fails a test and not the end of all tests.
        arguments = (served, Limits(**limits), ("127.0.0.1", 0), (), ready)
        thread = threading.Thread(target=serve, args=arguments, daemon=True)
        thread.start()
        assert listening.wait(30)
        yield found[0]
        found[0].server.stop()
        thread.join(10)
        assert not thread.is_alive()

    return start


@pytest.fixture(scope="module")
def client(serving: Callable[..., Iterator[Client]]) -> Iterator[Client]:
    """A server of the tiny model with the usual limits."""
    yield from serving()


@pytest.fixture(scope="module")
def tall(
    tiny: Callable[..., Recipe], trained: tuple[Model, dict[str, Path]], serving: Callable[..., Iterator[Client]]
) -> Iterator[Client]:
    """A server of a model of 16 × 8 pixels, 8 rows of 4 tokens."""
    model = sharpened(build(tiny(tokenizer={"image_size": [16, 8]}), None, Classes(3)))
    yield from serving(served=Served.of(model, trained[1], 8, (16, 8)))
