"""The manifest of a set of samples: what made them, stored inside their ``.npz`` so that it stays with them.

It is an additional member of the archive, ``manifest.json``, which numpy and evaluators that read ``arr_0`` ignore.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from rearkit.recipe.tables import DRAWN_BY
from rearkit.system.npz_files import DAMAGE

MEMBER = "manifest.json"
FORMAT = 1
TABLES = (
    ("recipe", "sample"),
    ("recipe", "backbone"),
    ("recipe", "data", "source"),
    ("weights",),
    ("seeds",),
    ("versions",),
    ("size",),
)
LARGEST = 1 << 24  # bytes; a member that unpacks to more is no manifest

Manifest = dict[str, Any]


def read_manifest(path: str | Path) -> Manifest | None:
    """Read the manifest inside an ``.npz`` or a folder; return None if there is none, or no valid one."""
    # Files from elsewhere have none, and scoring them must not fail for that.
    try:
        if Path(path).is_dir():
            found = json.loads((Path(path) / MEMBER).read_text(encoding="utf-8"))
        else:
            with zipfile.ZipFile(path) as archive, archive.open(MEMBER) as member:
                found = json.loads(member.read(LARGEST))
    except DAMAGE:
        return None
    return found if isinstance(found, dict) and "format" in found and _is_well_formed(found) else None


def _is_well_formed(manifest: Manifest) -> bool:
    """Return whether what is told of a manifest has the kinds that it was written with; anybody may have written it."""
    for keys in TABLES:
        table: Any = manifest
        for key in keys:
            table = table.get(key, {})
            if not isinstance(table, dict):
                return False
    counts = manifest.get("counts_per_class", [])
    weights = manifest.get("weights", {})
    size = manifest.get("size", {})
    return (
        isinstance(counts, list)
        and all(type(count) is int for count in counts)
        and all(isinstance(digest, str) for digest in weights.values())
        and all(isinstance(size.get(name, []), list) for name in ("trained", "drawn", "changed"))
    )


def manifest_lines(manifest: Manifest) -> list[str]:
    """Return a manifest as a few lines for people."""
    # With defaults everywhere, since another version of rearkit may have written the manifest.
    recipe = manifest.get("recipe", {})
    sample = recipe.get("sample", {})
    backbone = recipe.get("backbone", {})
    source = recipe.get("data", {}).get("source", {})
    settings = ", ".join(f"{name} {sample[name]}" for name in DRAWN_BY if name in sample)
    counts = manifest.get("counts_per_class", [])
    spread = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0] if counts else 0}"
    weights = {name: digest[:12] for name, digest in manifest.get("weights", {}).items()}
    size = {name: list(map(str, found)) for name, found in manifest.get("size", {}).items() if isinstance(found, list)}
    other = [
        f"drawn at {' × '.join(size.get('drawn', []))} pixels, trained at {' × '.join(size.get('trained', []))}",
        *size.get("changed", []),
    ]
    return [
        f"recipe {recipe.get('name')}: {backbone.get('name')} trained on {source.get('name')}, {settings}",
        f"{manifest.get('num_images')} images, {spread} of each of {len(counts)} classes, "
        f"seed {manifest.get('seeds', {}).get('seed')}",
        "weights " + ", ".join(f"{name} {digest}…" for name, digest in weights.items()),
        "made with " + ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items()),
        *(["; ".join(other)] if size else []),
    ]
