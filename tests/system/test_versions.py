from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest

from rearkit.system.versions import git_revision


def test_looking_at_a_checkout_leaves_no_lock_in_it_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    for words in (["init", "-q"], ["add", "a"], ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-qm", "x"]):
        subprocess.run(["git", *words], check=True)
    # Touched since: git would write down when.
    os.utime("a", (1, 1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        found = git_revision()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found.endswith(", clean") and len(found) == 40 + len(", clean")
    assert not Path(".git", "index.lock").exists()
