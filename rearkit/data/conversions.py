"""A folder that a conversion writes its shards to: its own alone, and of one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rearkit.errors import DataError
from rearkit.system.console import say
from rearkit.system.files import read_json, remove_leftovers, storage_errors, write_json
from rearkit.system.locks import claimed

PLAN = "plan.json"
SOURCES = "sources.json"
"""Digest of what each shard was made of, by its name; earlier versions wrote none."""
LOCK = ".lock"


@contextmanager
def conversion(target: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Claim a folder for one conversion while the block runs; a conversion that was cut off may claim it again.

    Args:
        target: the folder, made if it is not there.
        plan: what is converted, and how; kept in the folder.

    Raises:
        DataError: the folder holds shards of something else.
        RearkitError: another process is converting into it.
    """
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    with claimed(target / LOCK, str(target)):
        before = read_json(target / PLAN)
        if before is None and any(target.glob("*.tar")):
            raise DataError(f"{target}: holds shards of something else; choose another folder")
        if before not in (None, plan):
            raise DataError(f"{target}: holds another conversion ({before}); choose another folder")
        remove_leftovers(target)
        write_json(target / PLAN, plan)
        yield


def remove_outdated(target: Path, sources: Mapping[str, str]) -> None:
    """Remove the shards that were made of something else than they would be now, and note what all are made of.

    Args:
        target: folder of the shards, claimed by `conversion`.
        sources: digest of what each shard is made of, by its name.
    """
    before = read_json(target / SOURCES)
    known = before if isinstance(before, dict) else {}
    # Shards of which nothing is noted are an earlier version's, and stay.
    changed = [name for name, digest in sources.items() if known.get(name, digest) != digest]
    outdated = [target / name for name in changed if (target / name).is_file()]
    for path in outdated:
        path.unlink()
    if outdated:
        say(f"{target}: the source has changed; {len(outdated)} of {len(sources)} shards are made again")
    # Last: a process that is killed before this finds the same shards outdated again.
    write_json(target / SOURCES, sources)
