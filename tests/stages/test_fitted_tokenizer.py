from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest
import webdataset
from torch import Tensor

from rearkit.errors import DataError
from rearkit.fitting.fit import TokenizerFit
from rearkit.model import build_tokenizer
from rearkit.recipe.tables import Recipe
from rearkit.stages import data, tokenizer
from rearkit.stages.intact import write_key
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import run_stage, stage_key, up_to_date
from rearkit.weights import write_state_dict

Make = Callable[[float], Recipe]


@pytest.fixture(params=["held-out", "train"])
def split(request: pytest.FixtureRequest) -> str:
    """The split that a fitted tokenizer is measured on."""
    return str(request.param)


@pytest.fixture
def recipe(split: str, tiny: Callable[..., Recipe], tmp_path: Path) -> Make:
    """A recipe with a fit of three steps and a floor, with held-out images or without."""
    generator = np.random.default_rng(0)
    for name in ("train", "held-out"):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar"), mtime=0) as writer:
            for index in range(8):
                pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
                writer.write({"__key__": f"{index}", "png": pixels, "cls": index % 2})
    source = {"name": "shards", "train": str(tmp_path / "train.tar"), "num_classes": 2}
    if split == "held-out":
        source["held_out"] = str(tmp_path / "held-out.tar")

    def make(floor: float) -> Recipe:
        fit = {"steps": 3, "batch": 4, "warmup_steps": 1, "min_psnr": floor}
        return tiny(data={"source": source}, tokenizer={"fit": fit})

    return make


def test_a_fit_below_its_floor_is_refused_and_kept_for_a_lower_one(
    split: str, recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    steps: list[int] = []
    step = TokenizerFit._step

    def counted(fit: TokenizerFit, images: Tensor) -> dict[str, float]:
        steps.append(fit.step)
        return step(fit, images)

    monkeypatch.setattr(TokenizerFit, "_step", counted)
    run_stage(data.STAGE, recipe(90), folder)
    kind = "training" if split == "train" else split
    for floor in (90, 80):
        with pytest.raises(DataError, match=rf"min_psnr = {floor}\.0, but {kind} images come back at"):
            run_stage(tokenizer.STAGE, recipe(floor), folder)
        assert folder.done("tokenizer") is None and not folder.tokenizer.exists()
        # As earlier versions wrote it, of which a stage that was cut off goes on at the same floor.
        if floor == 90:
            write_key(folder, "tokenizer", stage_key(tokenizer.STAGE, recipe(90), folder))
            with pytest.raises(DataError, match="min_psnr"):
                run_stage(tokenizer.STAGE, recipe(90), folder)
    assert run_stage(tokenizer.STAGE, recipe(1), folder)
    assert steps == [0, 1, 2]
    assert folder.result("tokenizer")[f"{split.replace('-', '_')}_psnr"] > 1
    assert not folder.fit_checkpoint.exists()
    # A finished one is not taken for good under a higher floor.
    assert up_to_date([tokenizer.STAGE], recipe(1), folder)
    assert not up_to_date([tokenizer.STAGE], recipe(90), folder)
    with pytest.raises(DataError, match="min_psnr"):
        run_stage(tokenizer.STAGE, recipe(90), folder)


def test_a_decoder_below_its_floor_is_not_advised_a_larger_codebook(recipe: Make, tmp_path: Path) -> None:
    whole = recipe(90)
    assert whole.tokenizer.fit is not None
    write_state_dict(tmp_path / "t.safetensors", build_tokenizer(whole).state_dict())
    fit = attrs.evolve(whole.tokenizer.fit, part="decoder")
    table = attrs.evolve(whole.tokenizer, weights=str(tmp_path / "t.safetensors"), fit=fit)
    changed, folder = attrs.evolve(whole, tokenizer=table), RunFolder(tmp_path / "run")
    run_stage(data.STAGE, changed, folder)
    with pytest.raises(DataError, match=r"min_psnr = 90\.0, .*; fit at a lower lr, or with less weight on perceptual"):
        run_stage(tokenizer.STAGE, changed, folder)
