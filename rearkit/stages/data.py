"""The stage ``data``: image shards, written from a dataset or found. No later stage opens the dataset again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rearkit.contracts import SPLITS, Classes, Dataset, ImageSample, ImageSize, square_side
from rearkit.data.access import Access
from rearkit.data.bad_samples import BadSamples
from rearkit.data.decoding import Decoding
from rearkit.data.fetching import Retry, is_remote
from rearkit.data.image_sets import ImageSet, Split
from rearkit.data.image_shards import ShardHeaders, read_dataset, read_headers, write_shards
from rearkit.data.labels import named_classes, noting_classes
from rearkit.data.shard_members import Fields
from rearkit.errors import DataError, RearkitError
from rearkit.model import build_dataset, build_tokenizer
from rearkit.recipe.settings import with_changes
from rearkit.recipe.tables import DataTable, Recipe
from rearkit.stages.aside import set_aside_other_classes
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage
from rearkit.system import distributed
from rearkit.system.checksums import read_sealed, write_sealed
from rearkit.system.console import progress_bar, say
from rearkit.system.devices import resolve_device
from rearkit.system.files import read_json, write_json

# More would wait for one another: a part of decoding holds Python's lock.
MOST_THREADS = 12


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Write the shards of both splits on the first rank, or count found ones on all; list them and the classes."""

    def look() -> tuple[dict[str, Sequence[str] | None], Fields, str | None]:
        dataset = build_dataset(recipe)
        # Before the files are read: what changes while they are makes the stage run again.
        stamp = _stamp(dataset)
        return {split: dataset.shards(split) for split in SPLITS}, _fields(dataset), stamp

    # Others need not open the dataset, which may be a plugin's that fetches it.
    existing, fields, stamp = distributed.from_main(look)
    headers = {split: _headers(shards, split, fields) for split, shards in existing.items() if shards is not None}
    return distributed.from_main(lambda: _list(recipe, folder, headers, fields, stamp))


def _list(
    recipe: Recipe,
    folder: RunFolder,
    headers: Mapping[str, Mapping[str, ShardHeaders]],
    fields: Fields,
    stamp: str | None,
) -> Outcome:
    """Write the shards that do not exist, and list all with their counts and the classes."""
    place = folder.stage("data")
    dataset = build_dataset(recipe)
    listing: dict[str, dict[str, int | None]] = {}
    written: list[str] = []
    found: dict[str, str] = {}
    seen: dict[str, set[int]] = {}
    for split in SPLITS:
        if split not in headers:
            images = noting_classes(dataset.images(split), seen.setdefault(split, set()))
            listing[split] = {**_write(images, split, place, recipe.data.shard_size, dataset.size(split))}
            written += [Path(shard).name for shard in listing[split]]
        else:
            listing[split] = _counts(headers[split], found)
    if not listing["train"] and recipe.tokens.pretokenized is None:
        raise DataError("[data.source]: no training shards, and no [tokens] pretokenized")
    classes = Classes.of(dataset)
    write_json(
        folder.images,
        {
            # Shards of our own by name, so that a run folder can be moved.
            "shards": {
                split: {Path(s).name if Path(s).name in written else s: n for s, n in shards.items()}
                for split, shards in listing.items()
            },
            "found": found,
            "num_classes": classes.number,
            "class_names": classes.names,
            # Only where it says something, so that other runs' files stay as they were.
            **({"fields": _changed(fields)} if fields != Fields() else {}),
            **({"decoding": attrs.asdict(how)} if (how := decoding_of(recipe, 0)) != Decoding(0) else {}),
        },
    )
    set_aside_other_classes(folder, classes.number)
    counts = {split: _total(shards) for split, shards in listing.items()}
    say(f"data: {_told(counts['train'])} training and {_told(counts['held-out'])} held-out images")
    # Classes in shards that were found are known only once all of them are read.
    if len(seen) == len(SPLITS) and (lacking := {*range(classes.number)} & seen["train"] - seen["held-out"]):
        say(f"data: held-out images lack {named_classes(lacking, classes)}, so held-out figures say nothing of these")
    result = {"images": counts, "num_classes": classes.number, "existing": _stamps(dataset), "stamp": stamp}
    return Outcome(result, (folder.images.name, *written))


def decoding_of(recipe: Recipe, image_size: ImageSize) -> Decoding:
    """How a recipe's image files become pixels, of a size."""
    table = recipe.data
    return Decoding(image_size, table.crop, table.background, table.orientation)


def open_split(recipe: Recipe, folder: RunFolder, name: str, decoding: Decoding | int, stage: str) -> Split:
    """Open a split of a run's images.

    Args:
        recipe: says how many samples may be bad, and how patiently to fetch.
        folder: the run; its data stage is done.
        name: ``"train"`` or ``"held-out"``.
        decoding: how images become pixels; for the recipe's way, R alone.
        stage: which stage reads, and lists what it skips.
    """
    listing = _listing(folder)
    # Earlier versions wrote 0 for a remote shard.
    shards = {shard: n or (None if is_remote(shard) else n) for shard, n in listing["shards"][name].items()}
    place = folder.stage("data")
    return Split(
        name=name,
        shards={str(place / shard) if (place / shard).is_file() else shard: count for shard, count in shards.items()},
        num_classes=listing["num_classes"],
        decoding=decoding_of(recipe, decoding) if isinstance(decoding, int) else decoding,
        max_bad_share=recipe.data.max_bad_share,
        access=Access(
            _retry(recipe),
            Fields(**listing.get("fields", {})),
            counts=read_sealed(folder.counts) or {},
            threads=_decoding_threads(recipe),
        ),
        seed=recipe.seed,
        log=folder.skipped(stage),
    )


def keep_counts(folder: RunFolder, images: Split) -> None:
    """Keep how many images the remote shards of a split have, so that no later stage fetches them to count them."""
    if images.access.counts:
        write_sealed(folder.counts, {**(read_sealed(folder.counts) or {}), **images.access.counts})


def run_classes(folder: RunFolder) -> Classes:
    """Return the classes of a run's dataset, as they were when the data stage ran."""
    listing = _listing(folder)
    names = listing["class_names"]
    return Classes(listing["num_classes"], None if names is None else tuple(names))


def load_images(recipe: Recipe, split: str = "train") -> ImageSet:
    """Read a split of a recipe's dataset into memory, without a run folder: the pixels that the stages have.

    Args:
        recipe: whose ``[data.source]`` and tokenizer's image size are used.
        split: ``"train"`` or ``"held-out"``.

    Raises:
        DataError: the data cannot be read.
    """
    dataset = build_dataset(recipe)
    size = square_side(build_tokenizer(recipe, load=False))
    how = decoding_of(recipe, size)
    shards = dataset.shards(split)
    if shards is not None:
        fields = _fields(dataset)
        return Split(
            name=split,
            shards={shard: read_headers(shard, fields).samples for shard in shards},
            num_classes=dataset.num_classes,
            decoding=how,
            max_bad_share=recipe.data.max_bad_share,
            access=Access(_retry(recipe), fields),
        ).all()
    samples = list(dataset.images(split))
    bad = BadSamples(recipe.data.max_bad_share, len(samples))
    return ImageSet.of(read_dataset(samples, how, dataset.num_classes, bad), size)


def _retry(recipe: Recipe) -> Retry:
    return Retry(recipe.data.fetch_tries, recipe.data.fetch_wait)


def _decoding_threads(recipe: Recipe) -> int:
    """How many threads decode images ahead: this rank's share of the cores where a GPU takes the images, else none."""
    # On CPUs the network needs all cores, and takes far longer than decoding does.
    if resolve_device(recipe.device).type == "cpu":
        return 0
    # Slurm gives each rank cores of its own, while ranks of torch's launcher share all.
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, mine // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def _fields(dataset: Dataset) -> Fields:
    """What a dataset with shards says of their samples' members, if it does."""
    fields: Fields = getattr(dataset, "fields", Fields())
    return fields


def _changed(fields: Fields) -> dict[str, Any]:
    return attrs.asdict(fields, filter=lambda attribute, value: value != attribute.default)


def _total(shards: Mapping[str, int | None]) -> int | None:
    """How many samples shards have; None where that of any is unknown."""
    counts = list(shards.values())
    return None if None in counts else sum(n or 0 for n in counts)


def _told(count: int | None) -> str:
    return "an unknown number of" if count is None else str(count)


def _listing(folder: RunFolder) -> dict[str, Any]:
    listing: dict[str, Any] | None = read_json(folder.images)
    if listing is None:
        raise DataError(f"{folder.images.parent}: no {folder.images.name}; run: python -m rearkit data RECIPE")
    return listing


def _write(images: Iterable[ImageSample], split: str, place: Path, shard_size: int, size: int | None) -> dict[str, int]:
    listing: dict[str, int] = {}
    total = math.ceil(size / shard_size) if size is not None else None
    with progress_bar(f"data: {split} shards", total) as bar:
        for path, count in write_shards(images, place, split, shard_size):
            listing[path] = count
            bar.advance(1, f"{sum(listing.values())} images")
    if not listing:
        raise DataError(f"[data.source]: no {split} images")
    return listing


def _headers(shards: Sequence[str], split: str, fields: Fields) -> dict[str, ShardHeaders]:
    """Read the headers of shards that exist, each on one rank; return those of all."""

    def read() -> dict[str, ShardHeaders]:
        mine = shards[distributed.rank() :: distributed.world_size()]
        found: dict[str, ShardHeaders] = {}
        with progress_bar(f"data: {split} shards", len(mine)) as bar:
            for shard in mine:
                found[shard] = read_headers(shard, fields)
                bar.advance(1)
        return found

    of_all = {shard: headers for found in distributed.together(read) for shard, headers in found.items()}
    return {shard: of_all[shard] for shard in shards}


def _counts(headers: Mapping[str, ShardHeaders], digests: dict[str, str]) -> dict[str, int | None]:
    """Return the number of samples of each shard, and note in ``digests`` what distinguishes their content."""
    for shard, found in headers.items():
        if not found.whole:
            say(f"data: {shard} is damaged or truncated; its headers tell of {found.samples} samples; copy it again")
        digests[shard] = found.digest
    return {shard: found.samples for shard, found in headers.items()}


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """The tables that shards depend on, and sizes and times of what they are made from."""
    done = None if folder is None else folder.done("data")
    try:
        dataset = build_dataset(recipe)
        existing, stamp = _stamps(dataset), _stamp(dataset)
    except RearkitError:
        # The source has moved away. A run that has read it needs it no more, so it is taken as it was.
        if done is None:
            raise
        existing, stamp = done["result"].get("existing", {}), done["result"].get("stamp")
    # Earlier versions did not note what a folder held. Their shards are up to date as long as they are all there.
    if folder is not None and done is not None and "stamp" not in done["result"]:
        stamp = None if all((folder.stage("data") / name).is_file() for name in done["outputs"]) else stamp
    # Whoever reads the shards minds how many are bad, the stage does not; with the default, keys stay as they were.
    default = attrs.fields(DataTable).max_bad_share.default  # type: ignore[arg-type]
    table = with_changes(recipe.data, max_bad_share=default)
    return {"data": table, "existing": existing} | ({} if stamp is None else {"stamp": stamp})


def _stamp(dataset: Dataset) -> str | None:
    """What a dataset says that tells a change of its files, if it does."""
    stamp: str | None = dataset.stamp() if hasattr(dataset, "stamp") else None
    return stamp


def _stamps(dataset: Dataset) -> dict[str, list[int]]:
    """Size and time of each shard that exists already; empty for one that is remote."""
    stamps: dict[str, list[int]] = {}
    for split in SPLITS:
        for shard in dataset.shards(split) or ():
            path = Path(shard)
            stamps[shard] = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
    return stamps


STAGE = Stage("data", (), tables, run, all_ranks=True, uses=("dataset",))
