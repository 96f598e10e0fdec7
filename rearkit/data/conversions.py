"""A folder that a conversion writes its shards to: its own alone, and of one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rearkit.errors import DataError
from rearkit.system.files import read_json, remove_leftovers, storage_errors, write_json
from rearkit.system.locks import claimed

PLAN = "plan.json"
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
