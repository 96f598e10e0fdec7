"""The stage ``sample``: from trained weights to an ``.npz`` in the ADM layout and a picture."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rearkit.data.pixels import save_grid
from rearkit.model import Model
from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe, component_tables
from rearkit.sampling.attention_maps import sample_maps
from rearkit.sampling.manifest import FORMAT, MEMBER, Manifest
from rearkit.sampling.parts import Parts, count_samples, write_npz, write_part
from rearkit.sampling.sampler import Sampler, balanced_classes
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage
from rearkit.stages.train import trained_model
from rearkit.system import distributed
from rearkit.system.console import progress_bar, say
from rearkit.system.files import remove, sha256, write_json
from rearkit.system.hub import hub_records
from rearkit.system.versions import package_versions

# Samples whose maps are drawn.
MAPPED = 6


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Sample on all ranks, one part of the set per batch; a run that was cut off makes only the missing parts."""
    folder.parts.mkdir(exist_ok=True)
    model = trained_model(recipe, folder)
    classes = balanced_classes(recipe.sample.num_images, model.classes.number)
    # Only the first rank looks: when the last one did, others might be writing parts already.
    missing = distributed.from_main(lambda: missing_samples(folder.parts, classes))
    seconds = _make(Sampler(model), classes, missing, folder.parts)
    distributed.barrier()
    images_per_second = len(missing) / seconds if missing else None
    return distributed.from_main(lambda: _collect(model, folder, classes, images_per_second))


def missing_samples(parts_folder: Path, classes: Sequence[int]) -> list[int]:
    """Return the numbers of the samples that are still to be made, sorted by class.

    A batch then has few classes, and shares what a backbone computes once per class (the modulations of
    `rearkit.components.backbones.dit_ar_decoding`).
    """
    done = Parts(parts_folder).place
    return [number for number in np.argsort(classes, kind="stable").tolist() if number not in done]


def _make(sampler: Sampler, classes: Sequence[int], missing: list[int], parts_folder: Path) -> float:
    """Make this rank's share of the missing samples; return the seconds that this took."""
    batch = sampler.table.batch
    rank = distributed.rank()
    ranks = distributed.world_size()
    # Whole batches in turn, so that all ranks have full batches and only the last one of all may be smaller.
    starts = range(rank * batch, len(missing), ranks * batch)
    mine = [number for start in starts for number in missing[start : start + batch]]
    before = len(classes) - len(missing)
    started = time.monotonic()
    shown = before
    with progress_bar("sample", len(classes), before) as bar:
        place = 0
        for samples in sampler.stream([classes[number] for number in mine], numbers=mine):
            numbers = mine[place : place + len(samples.classes)]
            write_part(parts_folder, numbers, samples)
            place += len(numbers)
            # By all ranks: the files are counted, since ranks do not wait for one another while they sample.
            made = count_samples(parts_folder)
            rate = (made - before) / (time.monotonic() - started)
            bar.advance(made - shown, f"{rate:.2f} images/s")
            shown = made
    return time.monotonic() - started


def _collect(model: Model, folder: RunFolder, classes: Sequence[int], images_per_second: float | None) -> Outcome:
    """Write the parts to one file, and the first samples of each class to a picture."""
    recipe = model.recipe
    parts = Parts(folder.parts)
    manifest = write_manifest(recipe, folder, classes, model.classes.number)
    write_npz(folder.samples, parts, classes, manifest)
    chosen, columns = grid_numbers(classes, recipe.sample.grid_classes, recipe.sample.grid_per_class)
    images = np.concatenate([parts.read("images", number) for number in chosen])
    save_grid(folder.sample_grid, images, columns)
    maps = _draw_maps(model, folder, parts, classes) if model.tokenizer.raster else {}
    parts.close()
    # Only now, so that a run that is cut off before this need not sample again.
    for path in (folder.parts, manifest):
        remove(path)
    say(f"sample: {len(classes)} images; see {folder.sample_grid}")
    result = {
        "images": len(classes),
        "images_per_second": images_per_second,
        "grid_classes": len(chosen) // columns,
        **maps,
    }
    return Outcome(result, (folder.samples.name, folder.sample_grid.name))


def _draw_maps(model: Model, folder: RunFolder, parts: Parts, classes: Sequence[int]) -> dict[str, list[str]]:
    """Draw where the model is unsure of a few samples of different classes; return the columns' names."""
    numbers = [classes.index(label) for label in sorted(set(classes))[:MAPPED]]
    images, tokens = (np.concatenate([parts.read(name, number) for number in numbers]) for name in ("images", "tokens"))
    chosen = torch.tensor([classes[number] for number in numbers])
    pictures, names = sample_maps(model, torch.from_numpy(images), torch.from_numpy(tokens).long(), chosen)
    save_grid(folder.sample_maps, pictures, len(names))
    return {"maps": names}


def grid_numbers(classes: Sequence[int], grid_classes: int, per_class: int) -> tuple[list[int], int]:
    """Return the numbers of the first samples of the first classes, one row per class, and the length of a row."""
    labels = np.array(classes)
    rows = [np.flatnonzero(labels == label)[:per_class] for label in range(min(grid_classes, max(classes) + 1))]
    # If some class has fewer samples, all rows are shortened, since the picture is a full grid.
    columns = min(len(row) for row in rows)
    return [int(number) for row in rows for number in row[:columns]], columns


def sample_manifest(recipe: Recipe, files: Mapping[str, Path], classes: Sequence[int], num_classes: int) -> Manifest:
    """Return the manifest of samples; the same weights and settings have the same manifest.

    Args:
        recipe: the resolved recipe; its ``sample`` table has guidance, temperature and the like.
        files: of the weights of ``backbone`` and ``tokenizer``.
        classes: the class of each sample, in order.
        num_classes: C; classes without samples count 0.
    """
    counts = [0] * num_classes
    for label in classes:
        counts[label] += 1
    providers = (table.provider.split(" ")[0] for table in component_tables(recipe))
    return {
        "format": FORMAT,
        "weights": {name: sha256(file) for name, file in files.items()},
        "seeds": {"seed": recipe.sample_seed, "first_sample": 0, "rule": "sample i is drawn from the seed and i alone"},
        "num_images": len(classes),
        "counts_per_class": counts,
        "versions": package_versions(*filter(None, providers)),
        "recipe": recipe_to_dict(recipe),
        # Of the files that the recipe names; the weights above are those that came of them.
        **hub_records(recipe.tokenizer.weights, recipe.backbone.weights),
    }


def size_record(model: Model) -> Manifest:
    """Return what a manifest says besides of a model at another size than it was trained at."""
    return {} if model.resized is None else {"size": dict(model.resized)}


def write_manifest(recipe: Recipe, folder: RunFolder, classes: Sequence[int], num_classes: int) -> Path:
    """Write the manifest to a file of the stage, from which it is put into the archive; return its path."""
    path = folder.stage("sample") / MEMBER
    files = {"backbone": folder.model, "tokenizer": folder.tokenizer}
    write_json(path, sample_manifest(recipe, files, classes, num_classes))
    return path


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """Return the tables that samples depend on."""
    return {"sample": recipe.sample, "seed": recipe.sample_seed}


STAGE = Stage("sample", ("tokenizer", "train"), tables, run, all_ranks=True, uses=("tokenizer", "backbone"))
