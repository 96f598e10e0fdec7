"""Files of weights as people have them: which format, which of several state dicts, and refusing to run any code.

The first bytes tell the format, not the suffix. Files are mapped into memory, so that only what is used is read.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rearkit.errors import WeightsError, did_you_mean, first_line
from rearkit.system.console import say_once
from rearkit.system.files import check_disk
from rearkit.system.hub import local_file

WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "net", "weights", "ema", "model_ema", "ema_state_dict")
"""Keys under which training scripts store a state dict; the first of them that is there is taken."""

ZIP = b"PK\x03\x04"
# The pickled number that begins the files of torch before 1.6.
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with: git lfs pull",
    b"<": "a web page, not weights; download the file itself",
    b"\x89HDF": "an HDF5 file; save its tensors as safetensors",
}
CONVERT = """\
{loader}
s = next((c[k] for k in {keys} if k in c), c) if isinstance(c, dict) else c.state_dict()
save_file({{k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}}, {target!r})"""


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file begins as safetensors do: the length of the header, then the header's JSON."""
    begin = _first_bytes(local_file(path))
    return len(begin) > 8 and begin[8:9] == b"{" and not begin.startswith((ZIP, OLD_TORCH))


def read_state_dict(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read a state dict from a file of safetensors or of torch; its bytes are read when its tensors are used.

    Args:
        path: the file, or its name on the hub (`rearkit.system.hub`).
        key: which of the file's state dicts; left out, the first of `WRAPPERS` that is there. The choice is said.

    Raises:
        WeightsError: the file is missing, damaged, needs unpickling, or has no such state dict.
    """
    path = local_file(path)
    if path.is_dir():
        raise WeightsError(f"{path}: a folder, not a weights file; name a file in it{_named(path)}")
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; correct the path")
    if is_safetensors(path):
        try:
            content: Any = load_file(path)
        except Exception as error:
            check_disk(path, error)
            raise WeightsError(f"{path}: not a readable weights file ({first_line(error)})") from None
    else:
        content = _read_torch(path, key)
    return _chosen(path, content, key)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def conversion(path: Path, key: str | None = None) -> str:
    """Return three lines of Python that turn a file which needs unpickling into safetensors beside it."""
    begin = _first_bytes(path)
    if begin.startswith(ZIP) and _is_script(path):
        load = f'torch.jit.load({str(path)!r}, map_location="cpu")'
    elif begin.startswith((ZIP, OLD_TORCH)):
        load = f'torch.load({str(path)!r}, map_location="cpu", weights_only=False)'
    else:
        load = f'pickle.load(open({str(path)!r}, "rb"))'
    loader = f"import pickle, torch; from safetensors.torch import save_file; c = {load}"
    target = path.with_suffix(".safetensors")
    if target == path:
        target = path.with_suffix(".converted.safetensors")
    return CONVERT.format(loader=loader, keys=WRAPPERS if key is None else (key,), target=str(target))


def _read_torch(path: Path, key: str | None) -> Any:
    begin = _first_bytes(path)
    if not begin:
        raise WeightsError(f"{path}: not a readable weights file (it is empty)")
    for known, what in OTHERS.items():
        if begin.startswith(known):
            raise WeightsError(f"{path}: {what}")
    zipped = begin.startswith(ZIP)
    if zipped and _is_script(path):
        raise _refused(path, key, "a TorchScript archive")
    try:
        with warnings.catch_warnings():
            # Of pickle protocols, and of storages: nothing that a user could act on.
            warnings.simplefilter("ignore")
            # torch goes by this suffix, and maps only files that it is given by name.
            if path.suffix == ".safetensors":
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # Never torch's own text, which says how to switch safety off.
        text = str(error)
        found = re.search(r"GLOBAL (\S+)", text) or re.search(r"(Unsupported [^\n.]*)", text)
        if found is None:
            raise WeightsError(f"{path}: not a readable weights file (damaged, or not torch's)") from None
        raise _refused(path, key, found[1]) from None
    # Unpickling damaged bytes can raise anything.
    except Exception as error:
        check_disk(path, error)
        raise WeightsError(f"{path}: not a readable weights file ({first_line(error)})") from None


def _refused(path: Path, key: str | None, what: str) -> WeightsError:
    return WeightsError(
        f"{path}: refused, since it holds more than tensors ({what}), and reading that can run code. If you trust "
        f"where it comes from, convert it once, in Python:\n{conversion(path, key)}"
    )


def _chosen(path: Path, content: Any, key: str | None) -> dict[str, Tensor]:
    """Take a state dict out of what a file holds, and say which if there was a choice."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path}: expected a state dict of tensors, found {type(content).__name__}")
    dicts = {name: value for name, value in content.items() if isinstance(name, str) and _is_state_dict(value)}
    if key is not None:
        return _by_key(path, content, dicts, key)
    if _is_state_dict(content) or not content:
        return dict(content)
    taken = next((name for name in WRAPPERS if name in dicts), None)
    if taken is None:
        held = ", ".join(str(name) for name in list(content)[:8])
        choice = f'; choose one by weights_key = "{next(iter(dicts))}"' if dicts else ""
        raise WeightsError(
            f"{path}: expected a state dict of tensors, found a {type(content).__name__} of {held}{choice}"
        )
    others = [f'"{name}"' for name in dicts if name != taken]
    if others:
        say_once(f'{path}: weights are its "{taken}"; weights_key chooses another: {", ".join(others)}')
    elif len(content) > 1 or taken != "model":
        say_once(f'{path}: weights are its "{taken}"')
    return dict(dicts[taken])


def _by_key(path: Path, content: Mapping[Any, Any], dicts: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    if key in dicts:
        return dict(dicts[key])
    # Several in one flat state dict, by how their names begin: Lightning's, or safetensors of a whole trainer.
    for flat in (content, *(dicts[name] for name in WRAPPERS if name in dicts)):
        found = {
            name.removeprefix(f"{key}."): value
            for name, value in flat.items()
            if isinstance(name, str) and name.startswith(f"{key}.") and isinstance(value, Tensor)
        }
        if found:
            return found
    known = list(dicts) or sorted({str(name).partition(".")[0] for name in content})[:8]
    raise WeightsError(
        f'{path}: weights_key = "{key}", but it has no such state dict{did_you_mean(key, known)}; '
        f"it has {', '.join(known) or 'none'}"
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _is_script(path: Path) -> bool:
    """Return whether a zip is TorchScript's, which holds code beside the tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    # ValueError: names that are no text. NotImplementedError: of a version of zip that is none.
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _named(folder: Path) -> str:
    """Return files of a folder that may be weights, as an example."""
    suffixes = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
    found = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)[:3]
    return f": {', '.join(found)}" if found else ""
