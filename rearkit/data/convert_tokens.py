"""Published token files into token shards, by several processes, each in the memory of one shard.

A first pass over the file finds where the lines of each shard lie; then each process reads those of one shard after
another. Nothing here imports torch, which alone would take more memory than the work.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import orjson

from rearkit.data.conversions import conversion, remove_outdated
from rearkit.data.token_writing import CLASSES, MAX_CODES, TOKENS, write_token_shard
from rearkit.errors import DataError
from rearkit.system.console import progress_bar
from rearkit.system.processes import in_processes

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_CLASS = np.iinfo(CLASSES).max
# A file without line ends, or a binary one, must not fill the memory before it is refused.
LONGEST_LINE = 1 << 26


@attrs.frozen
class Part:
    """The lines of one shard.

    Attributes:
        start: offset of the first line.
        end: offset behind the last line.
        line: number of the first line, counted from 1.
        rows: lines that are not blank.
        digest: SHA-256 of all its lines.
    """

    start: int
    end: int
    line: int
    rows: int
    digest: str


def jsonl_to_token_shards(
    source: Path, target: Path, shard_size: int = 100_000, workers: int | None = None
) -> list[Path]:
    """Turn a published token file, one ``{"class_id": 1, "tokens": [...]}`` a line, into token shards, in its order.

    Args:
        source: the file; blank lines and byte-order marks are skipped.
        target: folder for ``train-000000.tar``, …; those that are there are kept, if made of the same lines.
        shard_size: images in a shard.
        workers: processes; None for one per core.

    Raises:
        DataError: a line is damaged, of another length, or has a class or token out of range; the message names the
            line. Or ``target`` holds another conversion.
    """
    if not source.is_file():
        raise DataError(f"{source}: no such file")
    size = source.stat().st_size
    with conversion(target, {"source": source.name, "bytes": size, "shard_size": shard_size}):
        parts = find_parts(source, shard_size)
        if not parts:
            raise DataError(f"{source}: no lines")
        number, first = next(_lines(source, parts[0]))
        length = len(_checked(first, f"{source}, line {number}")[1])
        paths = [target / f"train-{index:06d}.tar" for index in range(len(parts))]
        remove_outdated(target, {path.name: part.digest for part, path in zip(parts, paths, strict=True)})
        missing = [(part, path) for part, path in zip(parts, paths, strict=True) if not path.is_file()]
        done = size - sum(part.end - part.start for part, _ in missing)
        with progress_bar("tokens: MiB", size >> 20, done >> 20) as bar:
            results = in_processes(_convert, [(source, part, path, length) for part, path in missing], workers)
            for (part, _), _ in zip(missing, results, strict=True):
                done += part.end - part.start
                bar.advance((done >> 20) - bar.done)
    return paths


def find_parts(source: Path, shard_size: int) -> list[Part]:
    """Find where the lines of each shard lie.

    Raises:
        DataError: a line is longer than any that holds one image.
    """
    parts: list[Part] = []
    start, end, line, first, rows, digest = 0, 0, 0, 1, 0, hashlib.sha256()
    with source.open("rb") as file, progress_bar("tokens: lines, MiB", source.stat().st_size >> 20) as bar:
        for text in iter(functools.partial(file.readline, LONGEST_LINE), b""):
            line += 1
            end += len(text)
            digest.update(text)
            if len(text) == LONGEST_LINE:
                raise DataError(
                    f"{source}, line {line}: longer than {LONGEST_LINE >> 20} MiB; expected one image a line"
                )
            # Nearly every line starts so, and this pass is what the processes wait for.
            if text[0] == 0x7B or not _is_blank(text):
                rows += 1
            if rows == shard_size:
                parts.append(Part(start, end, first, rows, digest.hexdigest()))
                start, first, rows, digest = end, line + 1, 0, hashlib.sha256()
                bar.advance((end >> 20) - bar.done)
    return [*parts, Part(start, end, first, rows, digest.hexdigest())] if rows else parts


def _convert(source: Path, part: Part, path: Path, length: int) -> None:
    """Write one shard."""
    tokens_nN, classes_n = np.empty((part.rows, length), TOKENS), np.empty(part.rows, CLASSES)
    pack = struct.Struct(f"<{length}H").pack
    for row, (number, text) in enumerate(_lines(source, part)):
        try:
            found = orjson.loads(text)
            label, packed = found["class_id"], pack(*found["tokens"])
            # Packed, `true` is 1 and `false` is 0; a line with neither letter has neither word.
            sure = _is_whole(label, MAX_CLASS) and b"u" not in text and b"f" not in text
        except (ValueError, KeyError, TypeError, struct.error):
            sure = False
        if not sure:
            label, tokens = _checked(text, f"{source}, line {number}")
            if len(tokens) != length:
                raise DataError(f"{source}, line {number}: {len(tokens)} tokens, where others have {length}")
            packed = pack(*tokens)
        tokens_nN[row], classes_n[row] = np.frombuffer(packed, TOKENS), label
    write_token_shard(path, tokens_nN, classes_n, {"source": source.name})


def _lines(source: Path, part: Part) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers."""
    left = part.rows
    with source.open("rb") as file:
        file.seek(part.start)
        for number, text in enumerate(file, part.line):
            if not _is_blank(text):
                yield number, text.removeprefix(BYTE_ORDER_MARK)
                left -= 1
                if not left:
                    return
    raise DataError(f"{source}: was cut off while it was read")


def _is_blank(text: bytes) -> bool:
    # Files that were put together of others may have a mark at the start of any line.
    text = text.removeprefix(BYTE_ORDER_MARK)
    return not text or text.isspace()


def _checked(text: bytes, where: str) -> tuple[int, list[int]]:
    """Return a line's class and tokens.

    Raises:
        DataError: it is no line of a token file; the message says why.
    """
    try:
        row = orjson.loads(text)
        label, tokens = row["class_id"], row["tokens"]
        if not _is_whole(label, MAX_CLASS):
            raise ValueError(f"class_id is {_shown(label)}, no whole number from 0 to {MAX_CLASS}")
        if not isinstance(tokens, list):
            raise ValueError(f"tokens are {_shown(tokens)}, no list")
        if not tokens:
            raise ValueError("no tokens")
        for token in tokens:
            if not _is_whole(token, MAX_CODES - 1):
                raise ValueError(f"a token is {_shown(token)}, no whole number from 0 to {MAX_CODES - 1}")
        return label, tokens
    except JSONDecodeError as error:
        problem = f"{error.msg} at character {error.pos + 1}"
    except KeyError as error:
        problem = f"there is no {error}"
    except (ValueError, TypeError) as error:
        problem = str(error)
    raise DataError(f'{where}: expected {{"class_id": 1, "tokens": [...]}} ({problem})')


def _is_whole(value: Any, most: int) -> bool:
    # By type, since True is an int as well.
    return type(value) is int and 0 <= value <= most


def _shown(value: Any) -> str:
    """Return a value as JSON writes it, cut off where it is long."""
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else f"{text[:40]}…"
