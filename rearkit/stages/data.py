"""The stage ``data``: image shards, written from a dataset or found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rearkit.contracts import SPLITS, Dataset
from rearkit.data.fetching import Retry
from rearkit.data.image_sets import ImageSet, _image_set
from rearkit.data.image_shards import (
    BadSamples,
    ReadImage,
    center_crop,
    open_image,
    read_headers,
    read_images,
    write_shards,
)
from rearkit.errors import DataError
from rearkit.model import build_dataset, build_tokenizer
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage
from rearkit.system.console import progress_bar, say
from rearkit.system.files import read_json, write_json


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Write or find the shards of both splits, and list them with their counts in ``shards.json``."""
    place = folder.stage("data")
    dataset = build_dataset(recipe)
    listing: dict[str, dict[str, int]] = {}
    written: list[str] = []
    found: dict[str, str] = {}
    for split in SPLITS:
        existing = dataset.shards(split)
        if existing is None:
            listing[split] = _write(dataset, split, place, recipe.data.shard_size)
            written += [Path(shard).name for shard in listing[split]]
        else:
            listing[split] = _count(existing, split, found)
    if not listing["train"] and recipe.tokens.pretokenized is None:
        raise DataError("[data.source]: no training shards, and no [tokens] pretokenized")
    names = dataset.class_names()
    write_json(
        place / "shards.json",
        {
            # Shards of our own by name, so that a run folder can be moved.
            "shards": {
                split: {Path(s).name if Path(s).name in written else s: n for s, n in shards.items()}
                for split, shards in listing.items()
            },
            "found": found,
            "num_classes": dataset.num_classes,
            "class_names": None if names is None else list(names),
        },
    )
    counts = {split: sum(shards.values()) for split, shards in listing.items()}
    say(f"data: {counts['train']} training and {counts['held-out']} held-out images")
    result = {"images": counts, "num_classes": dataset.num_classes}
    return Outcome(result, ("shards.json", *written))


def read_listing(folder: RunFolder, split: str) -> dict[str, int]:
    """Shards of a split with their counts (0: unknown), as the data stage left them."""
    place = folder.stage("data")
    listing = read_json(place / "shards.json")
    if listing is None:
        raise DataError(f"{place}: no shards.json; run: python -m rearkit data RECIPE")
    shards: Mapping[str, int] = listing["shards"][split]
    return {str(place / shard) if (place / shard).is_file() else shard: count for shard, count in shards.items()}


def class_names(folder: RunFolder) -> list[str]:
    """Names of the classes; their numbers where the dataset has no names."""
    listing = read_json(folder.stage("data") / "shards.json")
    return listing["class_names"] or [str(label) for label in range(listing["num_classes"])]


def tables(recipe: Recipe) -> Mapping[str, Any]:
    """The tables that shards depend on, and, of shards that exist already, sizes and times."""
    dataset = build_dataset(recipe)
    stamps = {}
    for split in SPLITS:
        for shard in dataset.shards(split) or ():
            if Path(shard).is_file():
                stat = Path(shard).stat()
                stamps[shard] = [stat.st_size, stat.st_mtime_ns]
            else:
                stamps[shard] = []
    return {"data": recipe.data, "existing": stamps}


def _write(dataset: Dataset, split: str, place: Path, shard_size: int) -> dict[str, int]:
    listing: dict[str, int] = {}
    images = dataset.images(split)
    size = dataset.size(split)
    total = math.ceil(size / shard_size) if size is not None else None
    with progress_bar(f"data: {split} shards", total) as bar:
        for path, count in write_shards(images, place, split, shard_size):
            listing[path] = count
            bar.advance(1, f"{sum(listing.values())} images")
    if not listing:
        raise DataError(f"[data.source]: no {split} images")
    return listing


def _count(shards: Sequence[str], split: str, digests: dict[str, str]) -> dict[str, int]:
    """Count the samples of shards that exist, and note in ``digests`` what tells their content from another."""
    listing: dict[str, int] = {}
    with progress_bar(f"data: {split} shards", len(shards)) as bar:
        for shard in shards:
            headers = read_headers(shard)
            if not headers.whole:
                say(f"data: {shard} is damaged or truncated; {headers.samples} samples can be told from its headers")
            listing[shard], digests[shard] = headers.samples, headers.digest
            bar.advance(1)
    return listing


STAGE = Stage("data", (), tables, run)


def retry_of(recipe: Recipe) -> Retry:
    """How patient a recipe is with remote shards."""
    return Retry(recipe.data.fetch_tries, recipe.data.fetch_wait)


def load_images(recipe: Recipe, split: str = "train") -> ImageSet:
    """Read a split of a recipe's dataset into memory, without a run folder.

    Args:
        recipe: whose ``[data.source]`` and tokenizer's image size are used.
        split: ``"train"`` or ``"held-out"``.

    Raises:
        DataError: the data cannot be read.
    """
    dataset, size = build_dataset(recipe), build_tokenizer(recipe, load=False).image_size
    shards = dataset.shards(split)
    if shards is not None:
        bad = BadSamples(recipe.data.max_bad_share, 0)
        return _image_set(read_images(shards, size, dataset.num_classes, bad, retry=retry_of(recipe)), size)
    images = (
        ReadImage(center_crop(open_image(sample.image), size), sample.label, sample.key)
        for sample in dataset.images(split)
    )
    return _image_set(images, size)
