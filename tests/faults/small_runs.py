"""A whole run of seconds, of images of its own, whose files the tests of this folder damage or cannot write."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from rearkit.recipe.tables import Recipe
from rearkit.system.files import sha256

RESULTS = ("tokenizer/tokenizer.safetensors", "train/model.safetensors", "sample/samples.npz", "scores.json")


def pixels(index: int, side: int = 8) -> np.ndarray:
    """Return the pixels of an image by its number."""
    return np.random.default_rng(index).integers(256, size=(side, side, 3), dtype=np.uint8)


def encoded(index: int, kind: str, side: int = 8) -> bytes:
    """Return that image as a file of a kind."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(index, side)).save(buffer, format=kind)
    return buffer.getvalue()


def photos(place: Path, each: int) -> str:
    """Write a folder of tiny images in three classes."""
    generator = np.random.default_rng(each)
    for label in "abc":
        (place / label).mkdir(parents=True)
        for index in range(each):
            pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / label / f"{index}.png")
    return str(place)


def small_recipe(tiny: Callable[..., Recipe], place: Path) -> Recipe:
    """Return the recipe, and write its images into a folder."""
    source = {"name": "folder", "train": photos(place / "train", 6), "held_out": photos(place / "held-out", 2)}
    classifier = {"steps": 4, "channels": 4, "features": 16, "min_accuracy": 0}
    return tiny(
        data={"source": source, "shard_size": 10},
        tokenizer={"fit": {"steps": 6, "batch": 4, "warmup_steps": 1, "checkpoint_every": 2, "min_psnr": 0}},
        tokens={"min_psnr": 0, "min_codebook_use": 0, "check_images": 4},
        train={"steps": 6, "checkpoint_every": 2, "validate_every": 2, "warmup_steps": 1, "log_every": 1},
        sample={"num_images": 12, "batch": 6, "grid_per_class": 1},
        evaluate={"features": "classifier", "nearest_k": 2, "classifier": classifier},
    )


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of what a run is for, as far as it is there."""
    return {name: sha256(folder / name) for name in RESULTS if (folder / name).is_file()}
