"""A plugin whose code is edited between two runs, as its author does, and one whose version changes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
RECIPE = """
name = "tiny"
[data.source]
name = "grey"
[tokenizer]
name = "maskgit-vqgan"
fit = {}
[backbone]
name = "dit-ar"
[train]
steps = 2
global_batch = 4
[sample]
num_images = 4
"""
CODE = """
import numpy as np
from rearkit import Component, hookimpl, settings
from rearkit.contracts import ImageSample

@settings
class Grey:
    \"\"\"Grey squares.\"\"\"

    num_classes = 2

    def class_names(self):
        return None

    def size(self, split):
        return 4

    def shards(self, split):
        return None

    def images(self, split):
        for number in range(4):
            yield ImageSample(f"{number}", np.full((8, 8, 3), 100, dtype=np.uint8), number % 2)

@hookimpl
def rearkit_components():
    return [Component("dataset", "grey", Grey, lambda settings: settings)]
"""


@pytest.mark.slow
def test_an_edit_or_another_version_runs_the_stage_again(
    distribution: Callable[..., Path], rearkit: Command, tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    site = distribution("rearkit-grey", CODE)

    def data() -> str:
        done = rearkit("data", "tiny.toml", path=[site])
        assert done.returncode == 0, done.stderr
        return done.stdout

    changed = "data: the recipe, an input or a plugin changed; the earlier result is kept in"
    assert "4 training and 4 held-out images" in data()
    assert "data: up to date" in data()
    (site / "rearkit_grey.py").write_text(CODE.replace("100", "200"), encoding="utf-8")
    assert changed in data()
    metadata = site / "rearkit_grey-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text(encoding="utf-8").replace("1.0", "1.1"), encoding="utf-8")
    assert changed in data()
    assert "data: up to date" in data()
