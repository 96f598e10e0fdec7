"""``python -m rearkit serve`` as a process: it starts on an exported model, answers, and ends when it is told to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from rearkit.cli.main import main
from rearkit.errors import RearkitError
from rearkit.serving.limits import Limits


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_seconds_though_somebody_follows_a_request(number: int, exported: Path) -> None:
    pytest.importorskip("uvicorn", reason="the package uvicorn is not installed (rearkit[serve])")
    command = [sys.executable, "-u", "-m", "rearkit", "serve", str(exported), "--port", "0", "--most-images", "64"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
            assert found, said
            url = f"http://127.0.0.1:{found[1]}"
            jobs = []
            for _ in range(20):
                body = json.dumps({"classes": ["dog"], "count": 64}).encode()
                asked = urllib.request.Request(f"{url}/v1/images", body, {"content-type": "application/json"})
                with urllib.request.urlopen(asked) as reply:
                    jobs.append(json.load(reply)["url"])
            with urllib.request.urlopen(url + jobs[-1] + "/events") as events:
                assert events.readline() == b"event: state\n"
                began = time.monotonic()
                process.send_signal(number)
                events.read()
            assert process.wait(10) == 0
            assert time.monotonic() - began < 10
            assert process.stdout.read().endswith("stopped\n")
        finally:
            process.kill()


def test_a_port_in_use_is_an_error_of_one_line(client: object) -> None:
    port = client.port  # type: ignore[attr-defined]
    served = client.served  # type: ignore[attr-defined]
    from rearkit.serving.server import serve

    with pytest.raises(RearkitError, match=rf"--host 127.0.0.1 --port {port}: cannot be listened on \(Address already"):
        serve(served, Limits(), ("127.0.0.1", port))


def test_without_the_extra_it_says_what_to_install(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "rearkit.serving.server", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(exported)])
    assert ended.value.code == 2
    assert "serve needs the package uvicorn; run: pip install 'rearkit[serve]'" in capsys.readouterr().err
