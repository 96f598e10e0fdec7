"""The token shards of a split, shared out over the ranks: one rank makes a shard, whole or not at all.

So the files do not depend on the number of ranks, and a run that was cut off goes on with those that are missing, on
any number of ranks. While they work, ranks do not wait for one another. What must be known of all is read from the
folder: a finished shard says how many samples were skipped for it.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from rearkit.contracts import Tokenizer
from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_sets import Split
from rearkit.data.token_shards import count_samples, read_meta
from rearkit.errors import DataError, RearkitError
from rearkit.recipe.tables import VIEWS
from rearkit.system import distributed
from rearkit.system.console import progress_bar
from rearkit.system.files import TEMPORARY
from rearkit.tokenization.tokenize import tokenize_shard

# Made by a rank that met an error, so that the others stop after their shard. The name of a temporary file: the stage
# removes those of an earlier run before it begins.
HALT = f".halt{TEMPORARY}"


@attrs.frozen
class Counts:
    """What reading image shards came to.

    Attributes:
        skipped: how many samples were skipped, by reason.
        good: how many images were tokenized.
        shards: how many samples remote shards have.
    """

    skipped: Mapping[str, int]
    good: int
    shards: Mapping[str, int] = attrs.field(factory=dict)


def write_token_shards(
    tokenizer: Tokenizer, images: Split, augment: str, batch: int, place: Path
) -> tuple[list[str], Counter[str]]:
    """Write the token shards of a split that do not exist yet. All ranks must call this.

    Args:
        tokenizer: frozen, in eval mode.
        images: the split, read at `rearkit.tokenization.views.read_at`.
        augment: which views of an image are tokenized.
        batch: views tokenized at once.
        place: folder for the token shards.

    Returns:
        the names of all shards, and how many samples were skipped by reason, the same on all ranks.

    Raises:
        DataError: more samples had to be skipped, by all ranks together, than the split allows; on every rank.
    """
    paths = {shard: place / f"{images.name}-{index:06d}.tar" for index, shard in enumerate(images.shards)}
    # Only the first rank looks: when the last one did, others might be writing already.
    before = distributed.from_main(lambda: dict(_finished(paths, VIEWS[augment])))
    missing = [shard for shard in paths if shard not in before]
    mine = missing[distributed.rank() :: distributed.world_size()]
    theirs = {shard: paths[shard] for shard in missing if shard not in mine}

    def work() -> Counts:
        # The budget of bad samples is the split's, so what is done already counts towards it.
        bad = images.budget()
        for counts in before.values():
            bad.hear(counts.skipped, counts.good)
        with progress_bar(f"tokens: {images.name} shards", len(paths), len(before)) as bar, _halting(place):
            for shard in mine:
                if (place / HALT).exists():
                    break
                bar.advance(_hear(place, theirs, VIEWS[augment], bad))
                single = attrs.evolve(images, shards={shard: images.shards[shard]})
                tokenize_shard(tokenizer, single, augment, batch, paths[shard], bad)
                bar.advance(1)
        return Counts(bad.reasons, bad.good, images.access.counts or {})

    everything = [*before.values(), *distributed.together(work)]
    total = images.budget()
    skipped: Counter[str] = Counter()
    for counts in everything:
        total.hear(counts.skipped, counts.good)
        skipped.update(counts.skipped)
        if images.access.counts is not None:
            images.access.counts.update(counts.shards)
    # Once more, by what all ranks have counted: while they worked, each knew the others' finished shards only.
    total.judge(f"{images.name} images")
    return [path.name for path in paths.values()], skipped


@contextlib.contextmanager
def _halting(place: Path) -> Iterator[None]:
    """Let the other ranks stop where this one meets an error, which all will raise when they meet."""
    try:
        yield
    except RearkitError:
        # On a full disk there may be no room for the mark; the others then come to their end, or meet the same.
        with contextlib.suppress(OSError):
            (place / HALT).touch()
        raise


def _hear(place: Path, theirs: dict[str, Path], views: int, bad: BadSamples) -> int:
    """Count what other ranks have finished; remove it from ``theirs``, and return how many shards it is."""
    # One listing, not a look at each name: on a network's file system, a name that was missed may stay so for a minute.
    there = set(place.iterdir()) if theirs else set()
    found = dict(_finished({shard: path for shard, path in theirs.items() if path in there}, views))
    for shard, counts in found.items():
        bad.hear(counts.skipped, counts.good)
        del theirs[shard]
    return len(found)


def _finished(paths: Mapping[str, Path], views: int) -> Iterator[tuple[str, Counts]]:
    """Yield those shards whose token shard is there and whole, with what it counts."""
    for shard, path in paths.items():
        with contextlib.suppress(OSError, tarfile.TarError, KeyError, ValueError, DataError):
            yield shard, Counts(read_meta(path)["skipped"], count_samples(path) // views)
