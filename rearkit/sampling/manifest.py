"""The manifest of a set of samples: what made them, kept inside their ``.npz`` and so wherever it is copied.

It is a further member of the archive, ``manifest.json``. numpy and the evaluators that read ``arr_0`` pass over it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

MEMBER = "manifest.json"
FORMAT = 1

Manifest = dict[str, Any]


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
