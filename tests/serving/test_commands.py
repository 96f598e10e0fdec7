"""The command line that a request is answered with draws the same images."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rearkit.cli.main import main
from rearkit.contracts import Classes
from rearkit.data.pixels import save_grid
from rearkit.serving.served import Served
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.train import export, load_model

# Other numbers than their own, so that a class needs more than a number to be named.
NAMES = ("1", "2", "3")


@pytest.fixture
def numbered(exported: Path, tmp_path: Path) -> Path:
    """The folder of an exported model whose classes are called so."""
    folder = RunFolder(tmp_path / "run")
    export(attrs.evolve(load_model(exported), classes=Classes(3, NAMES)), 4, folder)
    folder.model.replace(exported / "model.safetensors")
    return exported


@pytest.fixture
def client(numbered: Path, serving: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    files = {name: numbered / f"{name}.safetensors" for name in ("model", "tokenizer")}
    yield from serving(served=Served.of(load_model(numbered), {"backbone": files["model"], **files}, 8))


def as_png(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="png")
    return buffer.getvalue()


def drawn(job: Any) -> Tensor:
    images = [Image.open(io.BytesIO(base64.b64decode(image["png"]))) for image in job["images"]]
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images])).permute(0, 3, 1, 2)


def run(command: str, model: Path) -> None:
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "rearkit", "sample"]
    with pytest.raises(SystemExit) as ended:
        main([str(model) if word == "MODEL" else word for word in words[3:]])
    assert ended.value.code == 0


@pytest.mark.parametrize("edited", [False, True])
def test_it_draws_the_same(
    edited: bool, client: Any, numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    some: dict[str, Any] = {}
    photo = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[4:] = 255
    if edited:
        Path("photo.png").write_bytes(as_png(photo))
        Path("mask.png").write_bytes(as_png(mask))
        name = client.ask("POST", "/v1/photos", as_png(photo)).json["id"]
        some = {"photo": name, "mask": base64.b64encode(as_png(mask)).decode(), "fade": 2}
    job = client.draw(classes=[2, 0, 1], count=2, first=2, seed=5, temperature=0.7, **some)
    run(job["command"], numbered)
    rows = drawn(job).split(2)
    if edited:
        own = photo.permute(2, 0, 1)
        shown = torch.stack([own, torch.where(mask.bool(), torch.tensor(128, dtype=torch.uint8), own)])
        rows = tuple(torch.cat([shown, row]) for row in rows)
    save_grid(Path("expected.png"), torch.cat(rows), len(rows[0]))
    assert np.array_equal(*(np.asarray(Image.open(name)) for name in ("images.png", "expected.png")))


@pytest.mark.parametrize("options", [(), ("--to-folder", "out")])
def test_a_first_number_is_for_classes(
    options: tuple[str, ...], numbered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(numbered), "--first", "2", *options])
    assert ended.value.code == 2 and "--first is for --classes" in capsys.readouterr().err
