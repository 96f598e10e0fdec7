"""``sample --to-folder``: a run's samples, or those of a model that stands alone, as a folder of PNGs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rearkit.errors import DataError
from rearkit.evaluation.image_streams import NpzImages
from rearkit.model import Model
from rearkit.sampling.manifest import read_manifest
from rearkit.sampling.png_folders import png_folder
from rearkit.sampling.sampler import Sampler, balanced_classes
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.sample import sample_manifest, size_record
from rearkit.system.console import progress_bar, say

# Images read at a time.
BATCH = 64


def export_samples(folder: RunFolder, target: Path) -> None:
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
        for part in images.batches(BATCH):
            numbers = [number for number in range(start, start + len(part)) if number in missing]
            pngs.write(numbers, part.permute(0, 2, 3, 1).numpy()[[number - start for number in numbers]])
            start += len(part)
            bar.advance(len(part))
    say(f"sample: {len(images)} images in {target}")


def sample_model(model: Model, files: Mapping[str, Path], target: Path) -> None:
    """Sample an exported model, which needs no run, into a folder; what an earlier call wrote there is kept.

    Args:
        model: the model, whose recipe says how it is sampled.
        files: of the weights of ``backbone`` and ``tokenizer``, for the manifest.
        target: the folder.

    Raises:
        RearkitError: the folder holds something else.
    """
    classes = balanced_classes(model.recipe.sample.num_images, model.num_classes)
    manifest = sample_manifest(model.recipe, files, classes, model.num_classes) | size_record(model)
    sampler = Sampler(model)
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
