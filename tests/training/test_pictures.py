"""Samples over training: drawn at checkpoints, by the weights of the step, without training noticing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rearkit.data.token_shards import TokenData
from rearkit.model import build
from rearkit.recipe.tables import Recipe
from rearkit.training.loop import train
from rearkit.training.pictures import Pictures, read_pictures

Tiny = Callable[..., Recipe]


def tokens() -> TokenData:
    return TokenData.from_arrays(np.random.default_rng(0).integers(12, size=(20, 16)), np.arange(20) % 10)


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_each_checkpoint_has_a_picture_by_its_weights(average: float, tiny: Tiny, tmp_path: Path) -> None:
    table = {"steps": 4, "checkpoint_every": 2, "pictures": 3, "ema_decay": average}
    model = build(tiny(train=table))
    train(model, tokens(), folder=tmp_path)
    found = read_pictures(tmp_path)
    assert list(found) == [2, 4]
    # What the trained model draws itself is what its last picture shows.
    again = Pictures(model, tmp_path / "again", 3)
    assert again.classes == [0, 3, 6]
    (tmp_path / "again").mkdir()
    again.draw(4, model.backbone.state_dict())
    last, wanted = (np.asarray(Image.open(path)) for path in (found[4], read_pictures(tmp_path / "again")[4]))
    assert np.array_equal(last, wanted)


def test_training_does_not_notice(tiny: Tiny, tmp_path: Path) -> None:
    states = []
    for count in (0, 2):
        model = build(tiny(train={"steps": 4, "checkpoint_every": 1, "pictures": count}))
        (tmp_path / str(count)).mkdir()
        train(model, tokens(), folder=tmp_path / str(count))
        states.append(model.backbone.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not read_pictures(tmp_path / "0") and len(read_pictures(tmp_path / "2")) == 4


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory\nmore lines"), "CUDA out of memory"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_what_cannot_be_drawn_is_said_once(
    error: Exception, text: str, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*given: object) -> None:
        raise error

    monkeypatch.setattr("rearkit.training.pictures.Sampler", full)
    train(build(tiny(train={"steps": 4, "checkpoint_every": 1})), tokens(), folder=tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "pictures" in line]
    assert said == [f"train: step 1: no more pictures of samples: {text}"]


def test_decoding_that_fails_in_any_way_stops_no_training(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise AttributeError

    monkeypatch.setattr("rearkit.training.pictures.Sampler", broken)
    train(build(tiny(train={"steps": 1, "checkpoint_every": 1})), tokens(), folder=tmp_path)
    assert "train: step 1: no more pictures of samples: AttributeError" in capsys.readouterr().out
