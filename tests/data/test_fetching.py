from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import write_tar

from rearkit.data.access import Access
from rearkit.data.bad_samples import BadSamples
from rearkit.data.fetching import FetchError, Retry, fetch, is_remote, local_copy
from rearkit.data.image_shards import read_images
from rearkit.errors import DataError

QUICK = Retry(tries=4, wait=0.01)


def write_shard(path: Path, size: int = 6) -> Path:
    members = []
    for index in range(size):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(buffer, format="png")
        members += [(f"{index:04d}.png", buffer.getvalue()), (f"{index:04d}.cls", str(index % 3).encode())]
    return write_tar(path, members)


def flaky(shard: Path, failures: int, count: Path, before: str = "") -> str:
    """A command that fails so many times, after some output, and then gives the shard."""
    return (
        f"pipe:n=$(cat {count} 2>/dev/null || echo 0); echo $((n+1)) > {count}; "
        f"if [ $n -lt {failures} ]; then {before} exit 7; fi; cat {shard}"
    )


class Server(ThreadingHTTPServer):
    """Serves a shard by what its path says: ``/WHAT/TIMES/shard.tar`` goes wrong so many times first."""

    def __init__(self, shard: Path) -> None:
        self.content, self.seen = shard.read_bytes(), Counter[str]()
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, what: str, times: int = 0) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{what}/{times}/shard.tar"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        _, what, times, _ = self.path.split("/")
        self.server.seen[self.path] += 1
        fails = self.server.seen[self.path] <= int(times)
        if fails and what.isdigit():
            self.send_error(int(what))
            return
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fails else content)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "shard.tar")


@pytest.fixture
def server(shard: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(shard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_pipe_that_fails_twice_is_read_at_the_third_try(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # It breaks off in the middle of the shard, so that samples would be seen twice if they were read at once.
    pipe = flaky(shard, 2, tmp_path / "count", before=f"head -c 4000 {shard}; echo no route >&2;")
    bad = BadSamples(0.0, 6)
    images = list(read_images({pipe: 6}, 8, 3, bad, access=Access(QUICK)))
    assert [image.key for image in images] == [f"{index:04d}" for index in range(6)]
    assert (bad.good, bad.count) == (6, 0)
    told = capsys.readouterr().out
    assert told.count("exit 7: no route; trying again") == 2
    assert "trying again in 0.01 s (1 of 4 tries)" in told
    assert "trying again in 0.02 s (2 of 4 tries)" in told


@pytest.mark.parametrize("what", ["503", "429", "cut"])
def test_a_server_that_fails_twice_is_asked_a_third_time(what: str, server: Server, tmp_path: Path) -> None:
    fetch(server.url(what, 2), tmp_path / "copy.tar", QUICK)
    assert (tmp_path / "copy.tar").read_bytes() == server.content
    assert list(server.seen.values()) == [3]


def test_what_will_not_pass_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"404.*tried 1 time\)"):
        fetch(server.url("404", 9), tmp_path / "copy.tar", Retry(tries=4, wait=60))
    assert list(server.seen.values()) == [1]
    with pytest.raises(FetchError, match="nowhere"):
        fetch("nowhere://a/b.tar", tmp_path / "copy.tar", Retry(tries=4, wait=60))
    assert not list(tmp_path.glob("*copy*"))


def test_waiting_doubles_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with pytest.raises(FetchError, match=r"exit 7.*\(tried 9 times\)"):
        fetch("pipe:exit 7", tmp_path / "copy.tar", Retry(tries=9, wait=1))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_shard_that_cannot_be_had_counts_as_skipped_up_to_the_limit(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = flaky(shard, 99, tmp_path / "count")
    once = Retry(tries=1)
    bad = BadSamples(0.06, 0, tmp_path / "skipped.jsonl")
    images = list(read_images({lost: 6, str(shard): 0}, 8, 3, bad, access=Access(once)))
    assert len(images) == 6
    assert bad.reasons == {"lost with a shard that could not be fetched": 6}
    assert "is passed over: exit 7 (tried 1 time)" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"could not be fetched; 6 samples skipped .* max_bad_share"):
        list(read_images({lost: 6}, 8, 3, BadSamples(0.05, 0), access=Access(once)))
    with pytest.raises(DataError, match="100 samples skipped"):  # of a shard of unknown size
        list(read_images({lost: 0}, 8, 3, BadSamples(0.05, 0), access=Access(once)))


def test_a_copy_is_removed_once_it_was_read_and_a_local_file_is_not(shard: Path) -> None:
    assert is_remote(f"pipe:cat {shard}")
    assert is_remote("https://host/a.tar")
    assert not is_remote(str(shard))
    with local_copy(f"pipe:cat {shard}", QUICK) as copy:
        assert copy.read_bytes() == shard.read_bytes()
    assert not copy.parent.exists()
    with local_copy(str(shard), QUICK) as same:
        assert same == shard
    assert shard.is_file()
    with local_copy(f"file://{shard}", QUICK) as copy:
        assert copy.read_bytes() == shard.read_bytes()
