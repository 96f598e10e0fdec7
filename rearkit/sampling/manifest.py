"""The manifest of a set of samples: what made them, kept inside their ``.npz`` and so wherever it is copied.

It is a further member of the archive, ``manifest.json``. numpy and the evaluators that read ``arr_0`` pass over it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rearkit.recipe.loading import recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.show import component_tables
from rearkit.stages import RunFolder
from rearkit.system.files import sha256, write_json
from rearkit.system.versions import package_versions
from rearkit.tokenization.tokenizer import WEIGHTS
from rearkit.training.stage import MODEL

MEMBER = "manifest.json"
FORMAT = 1

Manifest = dict[str, Any]


def sample_manifest(recipe: Recipe, folder: RunFolder, classes: Sequence[int], num_classes: int) -> Manifest:
    """Say what a run's samples are made of; the same run has the same manifest.

    Args:
        recipe: the run's, as resolved; guidance, temperature and the like stand in its ``sample`` table.
        folder: the run, with trained weights.
        classes: the class of each sample, in order.
        num_classes: C; classes that were not asked for count 0.
    """
    counts = [0] * num_classes
    for label in classes:
        counts[label] += 1
    providers = (table.provider.split(" ")[0] for table in component_tables(recipe))
    return {
        "format": FORMAT,
        "weights": {
            "backbone": sha256(folder.stage("train") / MODEL),
            "tokenizer": sha256(folder.stage("tokenizer") / WEIGHTS),
        },
        "seeds": {"seed": recipe.sample_seed, "first_sample": 0, "rule": "sample i is drawn from the seed and i alone"},
        "num_images": len(classes),
        "counts_per_class": counts,
        "versions": package_versions(*filter(None, providers)),
        "recipe": recipe_to_dict(recipe),
    }


def write_manifest(place: Path, recipe: Recipe, folder: RunFolder, classes: Sequence[int], num_classes: int) -> Path:
    """Write the manifest into ``place`` as a file of its own, to be put into the archive; return its path."""
    path = place / MEMBER
    write_json(path, sample_manifest(recipe, folder, classes, num_classes))
    return path


def read_manifest(path: str | Path) -> Manifest | None:
    """Read the manifest inside an ``.npz``; None where it has none, or one that is no manifest."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(MEMBER) as member:
            found = json.loads(member.read())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return found if isinstance(found, dict) and "format" in found else None


def manifest_lines(manifest: Manifest) -> list[str]:
    """Say a manifest in a few lines, for people."""
    recipe = manifest.get("recipe", {})
    sample, backbone = recipe.get("sample", {}), recipe.get("backbone", {})
    source = recipe.get("data", {}).get("source", {})
    settings = ", ".join(f"{name} {sample[name]}" for name in SHOWN if name in sample)
    counts = manifest.get("counts_per_class", [])
    spread = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0] if counts else 0}"
    weights = {name: digest[:12] for name, digest in manifest.get("weights", {}).items()}
    return [
        f"recipe {recipe.get('name')}: {backbone.get('name')} trained on {source.get('name')}, {settings}",
        f"{manifest.get('num_images')} images, {spread} of each of {len(counts)} classes, "
        f"seed {manifest.get('seeds', {}).get('seed')}",
        "weights " + ", ".join(f"{name} {digest}…" for name, digest in weights.items()),
        "made with " + ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items()),
    ]


SHOWN = ("guidance_scale", "guidance_power", "temperature", "top_k", "top_p")
