"""What a line may change of an exported model, in every command that takes one: how it is sampled, not what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rearkit.cli.main import main

COMMANDS = {
    "serve": (),
    "reconstruct": ("photo.png",),
    "evaluate": ("--reference", "reference.npz"),
    "sample": ("--classes", "cat", "--grid", "grid.png"),
    "sample --to-folder": ("samples",),
}


@pytest.fixture
def line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command of `COMMANDS` on the model, with further options; return what it said."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    np.savez("reference.npz", np.zeros((8, 8, 8, 3), np.uint8))

    def run(command: str, *options: str, code: int = 0) -> str:
        name, *before = command.split()
        with pytest.raises(SystemExit) as ended:
            main([name, str(exported), *before, *COMMANDS[command], *options])
        told = capsys.readouterr()
        assert ended.value.code == code, told
        return told.out + told.err

    return run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Lets nothing listen; lists the models that were to be served."""
    pytest.importorskip("fastapi", reason="the package fastapi is not installed (rearkit[serve])")
    pytest.importorskip("uvicorn", reason="the package uvicorn is not installed (rearkit[serve])")
    found: list[Any] = []
    monkeypatch.setattr("rearkit.serving.server.serve", lambda model, *others: found.append(model))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_changes_what_a_model_is(command: str, line: Callable[..., str], served: list[Any]) -> None:
    for change in ("backbone.num_layers=9", "tokenizer.codebook_size=99", "tokenizer.weights=photo.png"):
        assert "the model's file says what it is" in line(command, "--set", change, code=2)
    assert not served


def test_a_server_draws_as_the_line_says_and_tells_so(line: Callable[..., str], served: list[Any]) -> None:
    line("serve", "--set", "sample.top_k=3", "--size", "16x8")
    (model,) = served
    assert model.sampler.table.top_k == model.manifest["recipe"]["sample"]["top_k"] == 3
    assert model.manifest["recipe"]["tokenizer"]["image_size"] == [16, 8]
    assert model.manifest["recipe"]["backbone"]["num_layers"] == len(model.model.backbone.blocks) == 2


@pytest.mark.parametrize("command", ["sample", "sample --to-folder"])
def test_a_device_of_the_line_is_the_one_that_samples(command: str, line: Callable[..., str]) -> None:
    """Without a GPU: it is refused rather than passed over, and named in the manifest."""
    if not torch.cuda.is_available():
        assert "cuda" in line(command, "--set", "device=cuda", code=2).lower()


@pytest.mark.parametrize("command", ["serve", "reconstruct", "sample"])
def test_a_model_needs_no_run(command: str, line: Callable[..., str], served: list[Any]) -> None:
    assert "--out: not with an exported model" in line(command, "--out", "run", code=2)
