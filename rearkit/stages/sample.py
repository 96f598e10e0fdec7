"""The stage ``sample``: trained weights to an ``.npz`` in the ADM layout and a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rearkit.data.pixels import save_grid
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe, component_tables
from rearkit.sampling.manifest import FORMAT, MEMBER, Manifest
from rearkit.sampling.parts import Parts, count_samples, write_npz, write_part
from rearkit.sampling.sampler import Sampler, balanced_classes
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage
from rearkit.stages.train import trained_model
from rearkit.system import distributed
from rearkit.system.console import progress_bar, say
from rearkit.system.files import remove, sha256, write_json
from rearkit.system.versions import package_versions


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Sample on all ranks, a part of the set a batch; a run that was cut off makes the parts that are missing."""
    folder.parts.mkdir(exist_ok=True)
    model = trained_model(recipe, folder)
    classes = balanced_classes(recipe.sample.num_images, model.classes.number)
    # Only the first rank looks, since the others may already be writing when the last one would.
    missing = distributed.from_main(lambda: missing_samples(folder.parts, classes))
    seconds = _make(Sampler(model), classes, missing, folder.parts)
    distributed.barrier()
    images_per_second = len(missing) / seconds if missing else None
    return distributed.from_main(lambda: _collect(recipe, folder, classes, model.classes.number, images_per_second))


def missing_samples(parts_folder: Path, classes: Sequence[int]) -> list[int]:
    """Numbers of the samples that are still to be made, class after class, so that few classes meet in a batch.

    What a backbone computes once a class (`rearkit.components.backbones.dit_ar_decoding`) is then shared by the batch.
    """
    done = Parts(parts_folder).place
    return [number for number in np.argsort(classes, kind="stable").tolist() if number not in done]


def _make(sampler: Sampler, classes: Sequence[int], missing: list[int], parts_folder: Path) -> float:
    """Make this rank's share of the missing samples; return the seconds that it took."""
    batch, rank, ranks = sampler.table.batch, distributed.rank(), distributed.world_size()
    starts = range(rank * batch, len(missing), ranks * batch)
    mine = [number for start in starts for number in missing[start : start + batch]]
    before = len(classes) - len(missing)
    started, shown = time.monotonic(), before
    with progress_bar("sample", len(classes), before) as bar:
        place = 0
        for samples in sampler.stream([classes[number] for number in mine], numbers=mine):
            numbers = mine[place : place + len(samples.classes)]
            write_part(parts_folder, numbers, samples)
            place += len(numbers)
            made = count_samples(parts_folder)  # by all ranks
            rate = (made - before) / (time.monotonic() - started)
            bar.advance(made - shown, f"{rate:.2f} images/s")
            shown = made
    return time.monotonic() - started


def _collect(
    recipe: Recipe, folder: RunFolder, classes: Sequence[int], num_classes: int, images_per_second: float | None
) -> Outcome:
    """Put the parts into one file, and the first of each class into a picture."""
    parts = Parts(folder.parts)
    manifest = write_manifest(folder.stage("sample"), recipe, folder, classes, num_classes)
    write_npz(folder.samples, parts, classes, manifest)
    chosen, columns = grid_numbers(classes, recipe.sample.grid_classes, recipe.sample.grid_per_class)
    images = np.concatenate([parts.read("images", number) for number in chosen])
    save_grid(folder.sample_grid, torch.from_numpy(images).permute(0, 3, 1, 2), columns)
    parts.close()
    for path in (folder.parts, manifest):
        remove(path)
    say(f"sample: {len(classes)} images; see {folder.path / folder.sample_grid.name}")
    result = {
        "images": len(classes),
        "images_per_second": images_per_second,
        "grid_classes": len(chosen) // columns,
    }
    return Outcome(result, (folder.samples.name, folder.sample_grid.name))


def grid_numbers(classes: Sequence[int], grid_classes: int, per_class: int) -> tuple[list[int], int]:
    """Numbers of the first samples of the first classes, a row a class, and how many are in a row."""
    labels = np.array(classes)
    rows = [np.flatnonzero(labels == label)[:per_class] for label in range(min(grid_classes, max(classes) + 1))]
    columns = min(len(row) for row in rows)
    return [int(number) for row in rows for number in row[:columns]], columns


def sample_manifest(recipe: Recipe, folder: RunFolder, classes: Sequence[int], num_classes: int) -> Manifest:
    """Say what a run's samples are made of; the same run has the same manifest.

    Args:
        recipe: the run's, as resolved; guidance, temperature and the like stand in its ``sample`` table.
        folder: the run, with trained weights.
        classes: the class of each sample, in order.
        num_classes: C; classes that were not asked for count 0.
    """
    counts = [0] * num_classes
    for label in classes:
        counts[label] += 1
    providers = (table.provider.split(" ")[0] for table in component_tables(recipe))
    return {
        "format": FORMAT,
        "weights": {
            "backbone": sha256(folder.model),
            "tokenizer": sha256(folder.tokenizer),
        },
        "seeds": {"seed": recipe.sample_seed, "first_sample": 0, "rule": "sample i is drawn from the seed and i alone"},
        "num_images": len(classes),
        "counts_per_class": counts,
        "versions": package_versions(*filter(None, providers)),
        "recipe": recipe_to_dict(recipe),
    }


def write_manifest(place: Path, recipe: Recipe, folder: RunFolder, classes: Sequence[int], num_classes: int) -> Path:
    """Write the manifest into ``place`` as a file of its own, to be put into the archive; return its path."""
    path = place / MEMBER
    write_json(path, sample_manifest(recipe, folder, classes, num_classes))
    return path


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """The tables that samples depend on."""
    return {"sample": recipe.sample, "seed": recipe.sample_seed}


STAGE = Stage("sample", ("tokenizer", "train"), tables, run, all_ranks=True)
