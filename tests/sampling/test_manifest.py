from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.sampling.manifest import manifest_lines, read_manifest
from rearkit.sampling.parts import Parts, write_npz, write_part
from rearkit.sampling.sampler import Samples
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.sample import sample_manifest, write_manifest
from rearkit.system.files import sha256


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with files where its weights would be."""
    for name in ("train/model.safetensors", "tokenizer/tokenizer.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    return RunFolder(tmp_path)


def files(folder: RunFolder) -> dict[str, Path]:
    return {"backbone": folder.model, "tokenizer": folder.tokenizer}


def test_a_manifest_says_what_made_the_samples(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    recipe = tiny(
        seed=7, sample={"num_images": 5, "guidance_scale": 3.5, "guidance_schedule": "constant", "temperature": 0.75}
    )
    found = sample_manifest(recipe, files(folder), [0, 1, 2, 0, 1], 4)
    assert found["weights"]["backbone"] == sha256(folder.stage("train") / "model.safetensors")
    assert found["weights"]["tokenizer"] == sha256(folder.stage("tokenizer") / "tokenizer.safetensors")
    assert found["counts_per_class"] == [2, 2, 1, 0]
    assert found["num_images"] == 5 and found["seeds"]["seed"] == 7
    assert found["recipe"] == recipe_to_dict(recipe)
    assert {"rearkit", "torch", "Python"} <= set(found["versions"])
    lines = "\n".join(manifest_lines(found))
    assert all(text in lines for text in ("guidance_scale 3.5", "guidance_schedule constant", "temperature 0.75"))
    assert "5 images, 0 to 2 of each of 4" in lines
    assert sample_manifest(tiny(seed=8), files(folder), [0], 4) != found


def test_it_lies_in_the_archive_and_goes_where_that_is_copied(
    tiny: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    images = np.ones((2, 4, 4, 3), np.uint8)
    write_part(tmp_path / "parts", [0, 1], Samples(images, np.array([0, 1]), np.zeros((2, 3), np.int64)))
    manifest = write_manifest(tiny(), folder, [0, 1], 2)
    expected = json.loads(manifest.read_text())
    archives = [tmp_path / "one.npz", tmp_path / "again.npz"]
    for path in archives:
        write_npz(path, Parts(tmp_path / "parts"), [0, 1], manifest)
    assert archives[0].read_bytes() == archives[1].read_bytes()
    copy = tmp_path / "elsewhere" / "copy.npz"
    copy.parent.mkdir()
    copy.write_bytes(archives[0].read_bytes())
    assert read_manifest(copy) == expected == sample_manifest(tiny(), files(folder), [0, 1], 2)
    with np.load(copy, allow_pickle=False) as archive:  # as numpy, and whoever reads by it, sees the set
        np.testing.assert_array_equal(archive["arr_0"], images)


@pytest.mark.parametrize(
    "odd", [{"recipe": 3}, {"weights": [1]}, {"counts_per_class": [None, 1]}, {"recipe": {"data": {"source": "x"}}}]
)
def test_a_manifest_of_other_kinds_is_none(odd: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1}))
    assert manifest_lines(read_manifest(tmp_path) or {})
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, **odd}))
    assert read_manifest(tmp_path) is None
