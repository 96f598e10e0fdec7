"""A stand-in of the Hugging Face hub on loopback: what its HTTP interface answers to a download, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40
TOKEN = "hf_secret"
WAY = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
STATUS = {"RepoNotFound": 404, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403}


class Hub(ThreadingHTTPServer):
    """Serves files.

    Attributes:
        files: content by ``(repository, file)``; datasets have ``datasets/`` before their name.
        gated: repositories that no token opens.
        private: repositories that only `TOKEN` opens.
        asked: paths of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.gated: set[str] = set()
        self.private: set[str] = set()
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        """What ``HF_ENDPOINT`` is to be."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def log_message(self, *given: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        self.server.asked.append(self.path)
        way = WAY.fullmatch(self.path)
        if way is None:
            self.send_error(404)
            return
        dataset, name, revision, file = way.groups()
        repo = f"{dataset or ''}{name}"
        hidden = repo in self.server.private and self.headers["Authorization"] != f"Bearer {TOKEN}"
        error = None
        if repo in self.server.gated:
            error = "GatedRepo"
        elif hidden or not any(repo == other for other, _ in self.server.files):
            error = "RepoNotFound"
        elif revision not in ("main", "v1", "refs%2Fpr%2F1", COMMIT):
            error = "RevisionNotFound"
        elif (repo, file) not in self.server.files:
            error = "EntryNotFound"
        content = self.server.files.get((repo, file), b"") if error is None else b""
        self.send_response(200 if error is None else STATUS[error])
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        if error is None:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", "a message of the hub")
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
