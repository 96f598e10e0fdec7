"""Samples, references, weights and exported models from elsewhere: read as written,
or refused; nothing of them runs."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import Case, command, damaged, fuzz
from ledger import Ledger, Outcome
from safetensors.torch import save, save_file

from rearkit.errors import RearkitError
from rearkit.evaluation.fidelity import read_reference
from rearkit.evaluation.image_folders import open_samples
from rearkit.sampling.manifest import manifest_lines, read_manifest
from rearkit.system.weight_files import read_state_dict
from rearkit.weights import load_weights

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
CLASSES = np.arange(6) % 3
MU, SIGMA = np.arange(4.0), np.eye(4) + 0.1


# What others may have written into samples.
MANIFESTS = [
    '{"format": 1}',
    '{"format": 1, "recipe": 3}',
    '{"format": 1, "weights": [1]}',
    '{"format": 1, "counts_per_class": "x"}',
    '{"format": "\\u001b[31m", "recipe": {"name": "\\u001b[31m"}}',
    '{"format": 1, "num_images": 1e999, "counts_per_class": [null, 1]}',
]


def npz(members: dict[str, np.ndarray], compressed: bool, manifest: str | None = None) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **members)  # type: ignore[arg-type]
    if manifest is not None:
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("manifest.json", manifest)
    return buffer.getvalue()


def odd_arrays(draw: random.Random, good: np.ndarray) -> np.ndarray:
    """The same array as another kind, shape or value."""
    return draw.choice(
        [
            good.astype(object), good.astype(np.float64) * np.nan, good.astype(np.float32) - 1e9, good[:0],
            good.reshape(-1),
            good.astype(np.int64) - 2**40, good.astype("S5"), np.array("x"), good.astype(complex), good.astype(bool),
            np.asfortranarray(good), good.astype(">f8"), good.astype("M8[s]"), good[..., None],
            good.astype(np.float16) * 9e4,
            np.zeros(len(good), [("a", "<i4"), ("b", "O")]), good[:3], np.full(good.shape, np.inf),
        ]
    )  # fmt: skip


def zipped(draw: random.Random, content: bytes) -> tuple[str, bytes]:
    """Change what an archive says of its members: flags, method, sizes, names, in both of its places or in one."""
    data = bytearray(content)
    local, central = data.find(b"PK\x03\x04"), data.find(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    # Offsets of the same field in both headers.
    fields = {"flags": (6, 8, 2), "method": (8, 10, 2), "crc": (14, 16, 4), "packed": (18, 20, 4), "size": (22, 24, 4),
              "name length": (26, 28, 2), "extra length": (28, 30, 2), "offset": (42, 42, 4), "entries": (8, 10,
              2)}  # fmt: skip
    what = draw.choice(list(fields))
    first, second, width = fields[what]
    value = draw.choice(
        [0, 1, 8, 9, 12, 14, 99, 2**15, 2 ** (8 * width) - 1, 2 ** (8 * width) - 2, 2 ** (8 * width - 1)]
    )
    value %= 2 ** (8 * width)
    places = draw.choice([(local + first,), (central + second,), (local + first, central + second)])
    for place in (end + first, end + second) if what == "entries" else places:
        data[place : place + width] = value.to_bytes(width, "little")
    return f"{what} {value} in {len(places)} from {places[0]}", bytes(data)


def written(
    draw: random.Random, folder: Path, how: str, members: dict[str, np.ndarray], manifest: str | None = None
) -> str:
    """Write ``x.npz`` with one array changed, or its bytes damaged; return what was done. ``members`` changes too."""
    told = ""
    if how == "array":
        name = draw.choice(list(members))
        members[name] = odd_arrays(draw, members[name])
        told = f" {name} {members[name].dtype} {members[name].shape} {members[name].reshape(-1)[:1]}"
    try:
        content = npz(members, draw.random() < 0.5, manifest)
    except (ValueError, TypeError):
        content = b""
    if how in ("damage", "zip"):
        more, content = (damaged if how == "damage" else zipped)(draw, content)
        told = f" {more}"
    (folder / "x.npz").write_bytes(content)
    return told


def samples(draw: random.Random, folder: Path) -> Case:
    members = {"arr_0": IMAGES, "arr_1": CLASSES}
    deep = "[" * draw.choice([100, 100_000])
    manifest = draw.choice([None, deep, *MANIFESTS])
    how = draw.choice(["array", "damage", "damage", "zip", "zip", "manifest"])
    detail = f"{how} {manifest!r:.40}"
    detail += written(draw, folder, how, members, manifest)

    def work() -> Outcome:
        found = open_samples(folder / "x.npz")
        read = torch.cat([torch.zeros(0, 3, 8, 8).byte(), *found.batches(4)]).permute(0, 2, 3, 1).numpy()
        labels = found.labels()
        about = read_manifest(folder / "x.npz")
        command("evaluate", "--compare", "x.npz", "x.npz")
        if about is not None:
            assert all(isinstance(line, str) for line in manifest_lines(about))
        if how == "array":
            # Another array is other images, or none; classes that cannot be such are left aside.
            return "held"
        same = np.array_equal(read, IMAGES) and (labels is None or np.array_equal(labels, CLASSES))
        return "held" if same else "silent"

    return detail, work


def reference(draw: random.Random, folder: Path) -> Case:
    members: dict[str, np.ndarray] = {"mu": MU, "sigma": SIGMA, "mu_s": MU, "sigma_s": SIGMA, "arr_0": IMAGES}
    for gone in draw.sample(list(members), draw.choice([0, 0, 1, 3])):
        del members[gone]
    how = draw.choice(["array", "damage", "zip", "none"])
    detail = f"{how} {' '.join(members)}"
    detail += written(draw, folder, how, members)

    def work() -> Outcome:
        found = read_reference(folder / "x.npz")
        if found.images is not None:
            assert all(len(batch) for batch in found.images.batches(4))
        for read in (found.gaussian, found.spatial):
            if read is None:
                continue
            if how == "array":
                good = np.isfinite(read.mu).all() and np.isfinite(read.sigma).all() and (np.diag(read.sigma) >= 0).all()
            else:
                good = np.array_equal(read.mu, MU) and np.array_equal(read.sigma, SIGMA)
            if not good:
                return "silent"
        return "held"

    return detail, work


class Runs:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def harm(draw: random.Random) -> Any:
    import builtins
    import os
    import subprocess

    return draw.choice(
        [Runs(os.system, "touch started"), Runs(subprocess.Popen, ["touch", "started"]), Runs(builtins.open,
        "started", "w"),
         Runs(builtins.exec, "open('started', 'w')"), Runs(builtins.eval, "open('started', 'w')"), Runs(os.mkdir,
         "started")]
    )  # fmt: skip


def weights(draw: random.Random, folder: Path) -> Case:
    state = {"a.weight": torch.arange(12.0).reshape(3, 4) / 8, "a.bias": torch.ones(3), "b": torch.zeros(1)}
    kind = draw.choice(["safetensors", "safetensors", "torch", "old torch", "pickle", "harm", "harm"])
    suffix = draw.choice(["safetensors", "pt", "bin", "ckpt"])
    buffer = io.BytesIO()
    hostile = kind == "harm"
    if hostile:
        content: Any = draw.choice([harm(draw), {"state_dict": state, "x": harm(draw)}, {**state, "y": [harm(draw)]}])
        kind = draw.choice(["torch", "old torch", "pickle"])
    else:
        content = state
    if kind == "safetensors":
        buffer.write(save(state, {"x": "y"}))
    elif kind == "pickle":
        pickle.dump(content, buffer, protocol=draw.choice([0, 2, 4, 5]))
    else:
        torch.save(content, buffer, _use_new_zipfile_serialization=kind == "torch")
    written, detail = buffer.getvalue(), f"{'hostile ' * hostile}{kind} as {suffix} {len(buffer.getvalue())}"
    # The numbers themselves have no checksum in any such file; only what describes them is damaged.
    if not hostile or draw.random() < 0.3:
        size = 8 + int.from_bytes(written[:8], "little") if kind == "safetensors" else len(written)
        how, header = damaged(draw, written[:size])
        written, detail = header + written[size:], f"{detail} {how}"
    (folder / f"x.{suffix}").write_bytes(written)

    def work() -> Outcome:
        module = torch.nn.ParameterDict()
        for name, value in state.items():
            module.register_parameter(name.replace(".", "_"), torch.nn.Parameter(torch.empty_like(value)))
        path = folder / f"x.{suffix}"
        with contextlib.suppress(RearkitError):
            read_state_dict(path)
        if (folder / "started").exists():
            return "let in"
        read = read_state_dict(path)
        code, _ = command("convert", path.name, "out.safetensors", "--to", "published")
        assert code == 2
        renamed = folder / "renamed.safetensors"
        save_file({name.replace(".", "_"): value.clone().contiguous() for name, value in read.items()}, renamed)
        load_weights(module, renamed)
        if kind != "safetensors":
            return "held"
        right = all(torch.equal(getattr(module, name.replace(".", "_")), value) for name, value in state.items())
        return "held" if right else "silent"

    return detail, work


@pytest.mark.parametrize("build", [samples, reference, weights], ids=lambda build: build.__name__)
def test_a_file_from_elsewhere_is_read_rightly_or_refused_and_runs_nothing(build: Any, tmp_path: Path) -> None:
    ledger = Ledger()
    # What is imported now is not what a fault has started.
    command("version")
    fuzz(ledger, f"file, {build.__name__}", tmp_path, build)
    ledger.check()
