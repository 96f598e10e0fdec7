"""Files on the hub, against a stand-in of its HTTP interface: no machine here reaches the hub itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hub_stand_in
import pytest

from rearkit.errors import RearkitError
from rearkit.system.hub import HubFile, hub_records, is_hub, local_file

CONTENT = b"weights\n"
ASK = """
import json, sys
from rearkit.errors import RearkitError
from rearkit.system.hub import hub_records, local_file
try:
    print(json.dumps([local_file(sys.argv[1]).read_text(), hub_records(sys.argv[1])]))
except RearkitError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def hub() -> Iterator[hub_stand_in.Hub]:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    with hub_stand_in.serving() as server:
        server.files = {
            ("me/repo", "w.pt"): CONTENT,
            ("me/repo", "deep/snapshots/w.pt"): CONTENT,
            ("datasets/me/set", "reference.npz"): CONTENT,
            ("me/private", "w.pt"): CONTENT,
            ("me/gated", "w.pt"): CONTENT,
        }
        server.private = {"me/private"}
        server.gated = {"me/gated"}
        yield server


def ask(name: str, home: Path, endpoint: str, **environment: str) -> tuple[int, str]:
    """Fetch a file in a process of its own, since the package reads its variables once; return the code and output."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK, name],
        env=plain | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout.strip() or done.stderr


@pytest.mark.parametrize(
    ("name", "repo", "kind", "revision", "file"),
    [
        ("hf://me/repo/w.pt", "me/repo", "model", None, "w.pt"),
        ("hf:/me/repo/w.pt", "me/repo", "model", None, "w.pt"),  # as a Path has it
        ("hf://me/repo@v1/deep/w.pt", "me/repo", "model", "v1", "deep/w.pt"),
        ("hf://me/repo@refs%2Fpr%2F1/w.pt", "me/repo", "model", "refs/pr/1", "w.pt"),
        ("hf://datasets/me/set/a/b.npz", "me/set", "dataset", None, "a/b.npz"),
        ("hf://datasets/me/set@main/b.npz", "me/set", "dataset", "main", "b.npz"),
        ("hf://me/repo/file@2.pt", "me/repo", "model", None, "file@2.pt"),
    ],
)
def test_names_are_read(name: str, repo: str, kind: str, revision: str | None, file: str) -> None:
    assert is_hub(name) and is_hub(Path(name))
    assert HubFile.parse(name) == HubFile(repo, kind, revision, file)
    assert HubFile.parse(str(HubFile.parse(name))) == HubFile.parse(name)


@pytest.mark.parametrize("name", ["hf://w.pt", "hf://me/repo", "hf://datasets/me/set", "hf://me/repo@v1"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(RearkitError, match=f"{name}: not a file on the hub; expected hf://USER/REPO/FILE"):
        HubFile.parse(name)


def test_other_paths_stay_as_they_are() -> None:
    assert local_file("runs/x.pt") == Path("runs/x.pt")
    assert not is_hub("/data/hf/x.pt") and not is_hub("https://host/x.pt")
    assert hub_records("runs/x.pt", None) == {}


def test_without_the_package_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RearkitError, match=r"hf://me/none/w\.pt: .* run: pip install 'rearkit\[hub\]'"):
        local_file("hf://me/none/w.pt")


@pytest.mark.parametrize(
    "name",
    ["hf://me/repo/w.pt", "hf://me/repo@v1/deep/snapshots/w.pt", "hf://datasets/me/set/reference.npz",
     "hf://me/repo@refs%2Fpr%2F1/w.pt"],
)  # fmt: skip
def test_a_file_is_fetched_once_and_recorded(name: str, hub: hub_stand_in.Hub, tmp_path: Path) -> None:
    code, output = ask(name, tmp_path, hub.endpoint)
    assert code == 0, output
    text, records = json.loads(output.splitlines()[-1])
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert text == CONTENT.decode()
    assert records == {"hub": {name: {"revision": hub_stand_in.COMMIT, "sha256": digest, "etag": digest}}}
    # Offline, the cache does; nobody is asked.
    asked = len(hub.asked)
    assert ask(name, tmp_path, hub.endpoint, HF_HUB_OFFLINE="1") == (0, output)
    assert len(hub.asked) == asked


def test_a_token_opens_what_is_private(hub: hub_stand_in.Hub, tmp_path: Path) -> None:
    code, output = ask("hf://me/private/w.pt", tmp_path, hub.endpoint)
    assert code == 2 and "no such repository, or a private one" in output and "HF_TOKEN" in output
    code, output = ask("hf://me/private/w.pt", tmp_path, hub.endpoint, HF_TOKEN=hub_stand_in.TOKEN)
    assert code == 0, output


@pytest.mark.slow
def test_what_cannot_be_had_is_said_in_a_line_with_the_remedy(hub: hub_stand_in.Hub, tmp_path: Path) -> None:
    for name, expected in (
        ("hf://me/none/w.pt", "no such repository, or a private one; correct the name, or set HF_TOKEN"),
        ("hf://me/repo@v9/w.pt", f"no such revision v9; see {hub.endpoint}/me/repo"),
        ("hf://me/repo/x.pt", f"no such file in the repository; see {hub.endpoint}/me/repo"),
        ("hf://datasets/me/set/x.npz", f"no such file in the repository; see {hub.endpoint}/datasets/me/set"),
        ("hf://me/gated/w.pt", f"access is gated; ask for it at {hub.endpoint}/me/gated, then set HF_TOKEN"),
    ):
        code, output = ask(name, tmp_path, hub.endpoint)
        assert (code, output.count("\n")) == (2, 0), output
        assert output.startswith(f"{name}: {expected}")
    code, output = ask("hf://datasets/me/set/reference.npz", tmp_path, hub.endpoint, HF_HUB_OFFLINE="1")
    assert code == 2 and "hf download --repo-type dataset me/set reference.npz" in output
    code, output = ask("hf://me/repo/w.pt", tmp_path, "http://127.0.0.1:9")
    assert code == 2 and "http://127.0.0.1:9 cannot be reached, and the file is not in the cache" in output
