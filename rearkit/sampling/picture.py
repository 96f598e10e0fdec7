"""A picture with samples of a few classes, which the user names or numbers."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rearkit.data.pixels import save_grid
from rearkit.errors import RearkitError
from rearkit.model import Model
from rearkit.sampling.sampler import Sampler
from rearkit.system.console import progress_bar, say


def sample_picture(model: Model, wanted: str, path: Path, per_class: int, first: int = 0) -> None:
    """Sample classes and save them as a PNG, with one row per class.

    Image k of a class does not depend on which other classes are sampled.

    Args:
        model: a trained model.
        wanted: numbers or names of classes, separated by commas.
        path: file for the picture.
        per_class: images per class.
        first: number of the first image of each class, which fixes its randomness.

    Raises:
        RearkitError: there is no such class, or more than one.
    """
    names = model.classes.titles
    labels = [find_class(text, names) for text in wanted.split(",")]
    classes = [label for label in labels for _ in range(per_class)]
    # A sample's randomness comes from its number, so each class counts from the same.
    numbers = [first + k for _ in labels for k in range(per_class)]
    sampler = Sampler(model)
    images: list[np.ndarray] = []
    started = time.monotonic()
    with progress_bar("sample", len(classes)) as bar:
        for part in sampler.stream(classes, numbers=numbers):
            images.append(part.images)
            made = sum(map(len, images))
            bar.advance(len(part.images), f"{made / (time.monotonic() - started):.2f} images/s")
    rate = len(classes) / (time.monotonic() - started)
    save_grid(path, np.concatenate(images), per_class)
    for row, label in enumerate(labels, start=1):
        name = "" if names[label] == str(label) else f", {names[label]}"
        say(f"row {row}: class {label}{name}")
    say(f"{path}: {len(classes)} images, {rate:.2f} images/s")


def find_class(text: str, names: Sequence[str], where: str = "--classes") -> int:
    """Find a class by its number, its name, or the beginning of its name if only one name begins so.

    Where names are numbers, ``#3`` is number 3, whatever has the name 3.

    Args:
        text: what the user wrote.
        names: of all classes.
        where: the option or the key, for messages.

    Raises:
        RearkitError: there is no such class, or more than one.
    """
    text = text.strip()
    digits = text.removeprefix("#")
    # Python refuses to read thousands of digits.
    if digits.isdecimal() and len(digits) < 10 and int(digits) < len(names):
        number = int(digits)
        if text == digits and text in names and names[number] != text:
            named = names.index(text)
            raise RearkitError(
                f"{where}: {text!r} is the number of class {names[number]!r} and the name of class number {named}; "
                f'write "#{number}" or "#{named}", the number of the one that you mean'
            )
        return number
    lowered = [name.lower() for name in names]
    # Exact case first: ImageNet has a dog "Cardigan" and a garment "cardigan".
    found = (
        [i for i, name in enumerate(names) if name == text]
        or [i for i, name in enumerate(lowered) if name == text.lower()]
        or [i for i, name in enumerate(lowered) if text and name.startswith(text.lower())]
    )
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{class_text(i, names)} {names[i]}" for i in found[:5])
        raise RearkitError(f"{where}: {text!r} may be any of {len(found)} classes ({listed}); give the number")
    near = difflib.get_close_matches(text.lower(), lowered, 1)
    hint = f"; did you mean {names[lowered.index(near[0])]!r}?" if near else ""
    raise RearkitError(f"{where}: no class {text!r}; there are numbers 0 to {len(names) - 1}, and names{hint}")


def class_text(label: int, names: Sequence[str]) -> str:
    """Return a class's number as `find_class` reads it: with a ``#`` where another class has it as its name."""
    text = str(label)
    return f"#{text}" if text in names and names[label] != text else text
