"""Which settings and scores differ between two sets of samples, according to their manifests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from rearkit.errors import RearkitError
from rearkit.sampling.manifest import read_manifest
from rearkit.stages.run_folder import RunFolder
from rearkit.system.files import read_json
from rearkit.system.hub import local_file

ABSENT = "–"
# Numbers are always listed, conditions only if they differ: equal ones need no explanation.
NUMBERS = ("fid", "sfid", "inception_score", "precision", "recall", "fid_floor", "class_agreement")
CONDITIONS = ("feature_space", "reference", "num_samples")


@attrs.frozen
class Described:
    """What a file or a run records about a set of samples.

    Attributes:
        path: where it was read.
        manifest: the settings, weights and software that made the samples; None if there is no manifest.
        scores: of the samples; empty if they have not been scored.
    """

    path: Path
    manifest: dict[str, Any] | None
    scores: dict[str, Any]


def describe(path: str | Path) -> Described:
    """Read the manifest and the scores of an ``.npz``, a folder of samples, a run's folder, or a ``scores.json``.

    Raises:
        RearkitError: the path is none of these, or has neither a manifest nor scores.
    """
    path = local_file(path)
    if path.is_dir():
        run = RunFolder(path)
        scores = read_json(run.scores) or read_json(path / run.scores.name) or {}
        # The manifest inside the scores comes first: the samples may have been replaced since they were scored.
        manifest = scores.get("manifest") or read_manifest(run.samples) or read_manifest(path)
    elif path.suffix == ".npz":
        scores = {}
        manifest = read_manifest(path)
    else:
        found = read_json(path) if path.is_file() else None
        # Any JSON may be given; each scores.json has a feature space.
        scores = found if isinstance(found, dict) and "feature_space" in found else {}
        manifest = scores.get("manifest")
    if not path.exists():
        raise RearkitError(f"{path}: no such file or folder")
    if manifest is None and not scores:
        raise RearkitError(f"{path}: neither a manifest of samples nor scores in it; expected .npz, run or scores.json")
    return Described(path, manifest, scores)


def difference_lines(first: Described, second: Described) -> list[str]:
    """List what differs, a line each: settings, weights, software and counts first, then the scores."""
    lines = [f"{one.path}: no manifest, so its settings are unknown" for one in (first, second) if not one.manifest]
    if not lines:
        changed = differing([first.manifest or {}, second.manifest or {}])
        lines = [f"{key}: {_told(a)} → {_told(b)}" for key, (a, b) in changed]
        lines = lines or ["no setting differs: the same weights, recipe, seed, counts and versions"]
    for key in (*CONDITIONS, *NUMBERS):
        one = first.scores.get(key)
        other = second.scores.get(key)
        if one is not None and other is not None and (key in NUMBERS or one != other):
            lines.append(f"scores.{key}: {_told(one)} → {_told(other)}")
    return lines


def differing(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Return the keys in which nested tables differ, each with the value of every table; `ABSENT` where it has none."""
    leaves = [dict(flat(table)) for table in tables]
    rows = [
        (key, [one.get(key, ABSENT) for one in leaves]) for key in dict.fromkeys(key for one in leaves for key in one)
    ]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested tables with their keys as in ``--set``; lists stay whole unless they hold tables."""
    # Lists of tables, such as regularizers, are addressed by index, as in regularizers.0.weight.
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = enumerate(value)
    else:
        yield place, value
        return
    for key, item in items:
        yield from flat(item, f"{place}.{key}" if place else str(key))


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    # Cut, so that a line fits a terminal; long values are lists, of classes for instance.
    return text if len(text) <= 60 else f"{text[:57]}…"
