"""``sample --to-folder``: a run's samples, or those of a model that stands alone, as a folder of PNGs."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np

from rearkit.contracts import ImageSize
from rearkit.errors import DataError
from rearkit.evaluation.image_streams import NpzImages
from rearkit.recipe.tables import Recipe
from rearkit.sampling.manifest import read_manifest
from rearkit.sampling.png_folders import png_folder
from rearkit.sampling.sampler import Sampler, balanced_classes
from rearkit.stages.model_files import model_file, tokenizer_file
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.sample import sample_manifest, size_record
from rearkit.stages.train import load_model
from rearkit.system.console import progress_bar, say
from rearkit.system.hub import local_file


def export_samples(folder: RunFolder, target: Path, batch: int = 64) -> None:
    """Write the samples of a run, whose stage ``sample`` is done, to a folder: the pixels of ``samples.npz``.

    Raises:
        RearkitError: the folder holds something else.
    """
    images = NpzImages.open(folder.samples)
    labels, manifest = images.labels(), read_manifest(folder.samples)
    if labels is None or manifest is None:
        raise DataError(f"{folder.samples}: has no classes or no manifest; run the sample stage again")
    with png_folder(target, manifest, labels.tolist()) as pngs, progress_bar("sample: PNGs", len(images)) as bar:
        missing = set(pngs.missing())
        start = 0
        for part in images.batches(batch):
            numbers = [number for number in range(start, start + len(part)) if number in missing]
            pngs.write(numbers, part.permute(0, 2, 3, 1).numpy()[[number - start for number in numbers]])
            start += len(part)
            bar.advance(len(part))
    say(f"sample: {len(images)} images in {target}")


def sample_model(
    source: str | Path, recipe: Recipe, target: Path, trust: bool = False, size: ImageSize | None = None
) -> None:
    """Sample an exported model, which needs no run, into a folder; what an earlier call wrote there is kept.

    Args:
        source: the exported model: its file, its folder, or its name on the hub.
        recipe: the model's own; its ``[sample]`` table may have been changed.
        target: the folder.
        trust: as for `load_model`.
        size: of the images, if it is another than the model was trained at.

    Raises:
        RearkitError: the folder holds something else, or the model cannot be loaded.
    """
    model = load_model(source, trust=trust, image_size=size)
    # Its modules are the file's, at the size that is wanted, and the manifest says so.
    recipe = attrs.evolve(recipe, tokenizer=model.recipe.tokenizer)  # type: ignore[misc]
    classes = balanced_classes(recipe.sample.num_images, model.num_classes)
    tokenizer = tokenizer_file(source, recipe) or local_file(recipe.tokenizer.weights or "")
    files = {"backbone": model_file(source), "tokenizer": tokenizer}
    manifest = sample_manifest(recipe, files, classes, model.num_classes) | size_record(model)
    sampler = Sampler(model, recipe.sample, recipe.sample_seed)
    with png_folder(target, manifest, classes) as pngs:
        missing = pngs.missing()
        # By class, as the stage does: a backbone then computes less.
        missing = [missing[i] for i in np.argsort([classes[number] for number in missing], kind="stable")]
        with progress_bar("sample", len(classes), len(classes) - len(missing)) as bar:
            done = 0
            for samples in sampler.stream([classes[number] for number in missing], numbers=missing):
                pngs.write(missing[done : done + len(samples.classes)], samples.images)
                done += len(samples.classes)
                bar.advance(len(samples.classes))
    say(f"sample: {len(classes)} images in {target}")
