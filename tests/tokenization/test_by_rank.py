"""Token shards by several ranks, which are real processes; `tests/end_to_end` has the command line's."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rearkit.data.decoding import Decoding
from rearkit.data.image_sets import Split
from rearkit.data.token_shards import count_samples
from rearkit.errors import DataError
from rearkit.model import build_tokenizer
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.tables import Recipe
from rearkit.system import distributed
from rearkit.tokenization.by_rank import HALT, write_token_shards

SIZE, SHARDS, EACH = 8, 6, 20


def write_images(place: Path, broken: dict[int, int]) -> None:
    """Write shards; ``broken`` says how many images of which shards are damaged."""
    from tars import write_tar  # here, since this file is also run as a script, which does not find it

    for number in range(SHARDS):
        members = []
        for index in range(EACH):
            buffer = io.BytesIO()
            pixels = np.random.default_rng(EACH * number + index).integers(256, size=(SIZE, SIZE, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="png")
            image = b"" if index < broken.get(number, 0) else buffer.getvalue()
            members += [(f"{index:03d}.cls", b"1"), (f"{index:03d}.png", image)]
        write_tar(place / f"{number}.tar", members)


def write(recipe: Recipe, images: Path, out: Path, share: float, known: bool) -> dict[str, Any]:
    """What each rank does; returns what it came to."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(recipe, load=False).eval()
    shards = {str(images / f"{number}.tar"): EACH if known else None for number in range(SHARDS)}
    split = Split(
        name="train", shards=shards, num_classes=10, decoding=Decoding(SIZE), max_bad_share=share, log=out / "log"
    )
    try:
        names, skipped = write_token_shards(tokenizer, split, "none", 16, out)
    except DataError as error:
        return {"error": str(error)}
    return {"names": names, "skipped": skipped}


def main() -> None:
    content, images, out, share, known = json.loads(sys.argv[1])
    distributed.start(torch.device("cpu"))
    print(json.dumps(write(load_recipe(content), Path(images), Path(out), share, known)))
    distributed.leave()


Write = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def on_ranks(tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> Write:
    """Call `write` on ranks; return what each came to."""

    def run(number: int, out: Path, share: float = 0.0, known: bool = True) -> list[dict[str, Any]]:
        out.mkdir(exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = json.dumps([tiny_recipe(), str(tmp_path / "images"), str(out), share, known])
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, given],
                env=os.environ
                | {"RANK": str(rank), "WORLD_SIZE": str(number), "OMP_NUM_THREADS": "1"}
                | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(number)
        ]
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert not any(process.returncode for process in processes)
        return [json.loads(output.splitlines()[-1]) for output in outputs]

    (tmp_path / "images").mkdir()
    return run


@pytest.mark.slow
@pytest.mark.slow
def test_bad_samples_are_counted_over_all_ranks(on_ranks: Write, tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    # Of 120, one on each of two ranks: neither alone meets the limit of one and a half.
    images = tmp_path / "images"
    write_images(images, {1: 1, 4: 1})
    told = "2 samples skipped (2 × image cannot be decoded), more than the 1.2% that [data] max_bad_share allows"
    (tmp_path / "alone").mkdir()
    alone = write(tiny(), images, tmp_path / "alone", 0.0125, True)
    assert told in alone["error"]
    both = on_ranks(2, tmp_path / "both", 0.0125)
    assert both[0] == both[1] and told in both[0]["error"]
    (tmp_path / "whole").mkdir()
    whole = write(tiny(), images, tmp_path / "whole", 0.02, True)
    assert whole["skipped"] == {"image cannot be decoded": 2}
    assert on_ranks(3, tmp_path / "three", 0.02) == [whole] * 3
    for name in whole["names"]:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


def test_ranks_stop_where_one_has_met_an_error(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", {})
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    (tmp_path / HALT).touch()
    write(tiny(), tmp_path / "images", tmp_path, 0.0, True)
    assert not list(tmp_path.glob("*.tar"))
    (tmp_path / HALT).unlink()
    write(tiny(), tmp_path / "images", tmp_path, 0.0, True)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [f"train-00000{i}.tar" for i in (1, 3, 5)]


def test_an_error_leaves_the_mark_by_which_others_stop(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", {3: EACH})
    assert "more than the 0.0%" in write(tiny(), tmp_path / "images", tmp_path, 0.0, True)["error"]
    assert (tmp_path / HALT).is_file()


@pytest.mark.parametrize("known", [True, False])
def test_what_is_there_counts_and_what_is_damaged_is_made_again(
    known: bool, tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    write_images(images, {0: EACH, 1: 2})  # nothing of the first can be used
    first = write(tiny(), images, tmp_path, 1.0, known)
    assert first["skipped"] == {"image cannot be decoded": EACH + 2}
    paths = [tmp_path / name for name in first["names"]]
    assert [count_samples(path) for path in paths] == [0, EACH - 2, *[EACH] * 4]
    content = {path: path.read_bytes() for path in paths}
    paths[2].write_bytes(content[paths[2]][:3000])
    paths[5].unlink()
    times = {path: path.stat().st_mtime_ns for path in paths[:2] + paths[3:5]}
    assert write(tiny(), images, tmp_path, 1.0, known) == first
    assert {path: path.read_bytes() for path in paths} == content
    assert {path: path.stat().st_mtime_ns for path in times} == times
    # The limit holds for what an earlier run has counted as well.
    assert "train images; 22 samples skipped" in write(tiny(), images, tmp_path, 0.1, known)["error"]


if __name__ == "__main__":
    main()
