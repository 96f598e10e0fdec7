"""Files that list the classes of images which lie in no class folders, such as ImageNet's validation images.

Two kinds: one number a line, from 1, in the order of the sorted file names, as ImageNet's development kit has them; and
an image file and its class a line, with commas, semicolons, tabs or a space between, with or without a header.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from rearkit.data.class_folders import sort_classes
from rearkit.errors import DataError
from rearkit.system.console import say

SEPARATORS = "\t;, "  # the first that is in all lines
SYNSETS = "meta.mat"  # beside the development kit's numbers: which class of WordNet each number is
MOST_CLASSES = 1_000_000  # each gets a name, also one that has no images
LONGEST = 18  # digits of a number
BOXED = re.compile(r"(n\d{8})( \d+)+")  # Kaggle's LOC_val_solution.csv: the class, then boxes

Row = tuple[int, list[str]]
"""A line's number, from 1, and its cells."""


def read_labels(file: Path, images: Sequence[str], source: str) -> tuple[dict[str, int], list[str]]:
    """Read the class of each image.

    Args:
        file: lists the classes.
        images: paths of the images below the source, sorted.
        source: what to call it in messages.

    Returns:
        the class of each path, and the names of the classes.

    Raises:
        DataError: the file cannot be read, or does not give each image one class.
    """
    rows = _rows(file)
    if all(len(cells) == 1 and cells[0].isdecimal() for _, cells in rows):
        found = _by_order(file, rows, images, source)
        synsets = _synsets(file.parent / SYNSETS)
        if synsets:
            wnids = {path: synsets.get(int(name[:LONGEST]), name) for path, name in found.items()}
            return _numbered(wnids, file, synsets)
    else:
        found = _by_name(file, rows, images, source)
    return _numbered(found, file)


def _rows(file: Path) -> list[Row]:
    """Split the lines that are not blank into cells."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: labels cannot be read ({getattr(error, 'strerror', None) or 'no UTF-8'})") from None
    filled = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not filled:
        raise DataError(f"{file}: no labels in it")
    separator = next((s for s in SEPARATORS if all(s in line for _, line in filled)), None)
    if separator is None:
        return [(number, [line]) for number, line in filled]
    if separator == " ":  # a name may have spaces, its class comes last
        return [(number, line.rsplit(None, 1)) for number, line in filled]
    return [(number, _cells(line, separator, f"{file}: line {number}")) for number, line in filled]


def _cells(line: str, separator: str, where: str) -> list[str]:
    # Line by line: in a table that is read as one, a quote that is not closed takes the lines after it.
    try:
        (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise DataError(f"{where}: its quotation marks do not pair ({error}); correct it") from None
    return [cell.strip() for cell in cells]


def _by_order(file: Path, rows: Sequence[Row], images: Sequence[str], source: str) -> dict[str, str]:
    if len(rows) != len(images):
        line = rows[min(len(rows), len(images) + 1) - 1][0]
        raise DataError(
            f"{file}: line {line}: {len(rows)} labels for the {len(images)} images of {source}; one number a line goes "
            "by the order of their names, so there must be one for each"
        )
    if zero := next((number for number, cells in rows if not cells[0].strip("0")), None):
        raise DataError(f"{file}: line {zero}: class 0; one number a line counts from 1, as in ImageNet's devkit")
    return {path: cells[0] for path, (_, cells) in zip(images, rows, strict=True)}


def _by_name(file: Path, rows: Sequence[Row], images: Sequence[str], source: str) -> dict[str, str]:
    known = _names(images)
    if rows[0][1][0] not in known:  # a header
        rows = rows[1:]
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, cells in rows:
        where = f"{file}: line {number}"
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{where}: an image file and its class expected, found {', '.join(cells)!r}")
        name, owner = cells
        if name not in known:
            raise DataError(f"{where}: {name!r} is no image of {source}, or is the name of several; give its path")
        path = known[name]
        if path in found:
            raise DataError(f"{where}: {name!r} again, as in line {lines[path]}; an image has one class")
        boxed = BOXED.fullmatch(owner)
        found[path], lines[path] = boxed[1] if boxed else owner, number
    if missing := [path for path in images if path not in found]:
        last = rows[-1][0] if rows else 1
        raise DataError(f"{file}: line {last} is the last, and {len(missing)} images have no class, first {missing[0]}")
    return found


def _names(images: Sequence[str]) -> dict[str, str]:
    """What an image may be called in a file: its path or its name, with or without a suffix, where that is unique."""
    called = [
        (name, path)
        for path in images
        for full in {path, PurePosixPath(path).name}
        for name in {full, full.rpartition(".")[0]}
    ]
    often = Counter(name for name, _ in called)
    return {name: path for name, path in called if often[name] == 1 or name == path}


def _numbered(
    found: Mapping[str, str], file: Path, synsets: Mapping[int, str] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Number the classes: as they count where they are numbers, else by their sorted names."""
    owners = set(synsets.values()) if synsets else set(found.values())
    if synsets is None and all(owner.isdecimal() for owner in owners):
        # Python refuses to read thousands of digits.
        if len(longest := max(owners, key=len)) > LONGEST:
            raise DataError(f"{file}: class {longest[:LONGEST]}…; a class has a number up to {MOST_CLASSES}, or a name")
        numbers = {int(owner) for owner in owners}
        first = min(numbers)
        if first > 1:
            raise DataError(f"{file}: the lowest class is {first}, so it is unclear whether they count from 0 or 1")
        say(
            f"data: {file}: classes count from {first}, so {first} is class 0; training images must have the same "
            f"order (ImageNet's devkit has another than WordNet's ids: keep its {SYNSETS} beside its numbers)"
        )
        if max(numbers) > MOST_CLASSES:
            raise DataError(f"{file}: class {max(numbers)}; a class has a number up to {MOST_CLASSES}, or a name")
        names = [str(number) for number in range(first, max(numbers) + 1)]
        return {path: int(owner) - first for path, owner in found.items()}, names
    names = sort_classes(owners)
    labels = {name: label for label, name in enumerate(names)}
    if strangers := sorted(set(found.values()) - labels.keys()):
        raise DataError(f"{file}: class {strangers[0][:LONGEST]} is none of those that {SYNSETS} beside it lists")
    return {path: labels[owner] for path, owner in found.items()}, names


def _synsets(file: Path) -> dict[int, str]:
    """The WordNet id of each of the development kit's numbers; none if the file is not there.

    Raises:
        DataError: the file is there and is another.
    """
    if not file.is_file():
        return {}
    if importlib.util.find_spec("scipy") is None:
        raise DataError(f"{file}: reading it needs scipy; run: pip install scipy")
    from scipy.io import loadmat

    try:
        entries = loadmat(file, squeeze_me=True)["synsets"]
        # Numbers above 1000 are groups of classes.
        found = {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in entries if not entry["num_children"]}
    # loadmat agrees with itself on no error.
    except Exception as error:
        raise DataError(
            f"{file}: not the devkit's list of classes ({error}); move it away, or fetch it again"
        ) from None
    say(f"data: {file}: numbers are turned into WordNet's ids, whose sorted order numbers the classes")
    return found
