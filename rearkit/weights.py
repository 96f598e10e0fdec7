"""Reading and writing weights: safetensors, or torch files with ``weights_only=True``; never arbitrary pickles."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rearkit.contracts import EXTRA, PublishedLayout
from rearkit.errors import WeightsError, first_line
from rearkit.registry.component import Component
from rearkit.system.files import replacing

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
# Keys under which training scripts store a state dict.
WRAPPERS = ("state_dict", "model", "model_state_dict")
# Tensors named in an error message.
SHOWN = 3


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pt``, ``.pth`` or ``.bin`` written by torch.

    Raises:
        WeightsError: the file is missing, damaged, or contains anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; correct the path")
    try:
        if path.suffix not in TORCH_SUFFIXES:
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: refused, since it holds more than tensors ({first_line(error)})") from None
    # Unpickling damaged bytes can raise anything.
    except Exception as error:
        raise WeightsError(f"{path}: not a readable weights file ({first_line(error)})") from None
    if isinstance(state, Mapping) and len(state) == 1 and next(iter(state)) in WRAPPERS:
        state = next(iter(state.values()))
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise WeightsError(f"{path}: expected a state dict of tensors, found {type(state).__name__}")
    return dict(state)


def write_state_dict(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict atomically: with torch if the suffix is .pt, .pth or .bin, else as safetensors."""
    plain: dict[str, Tensor] = {}
    memory: set[int] = set()
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        # Cloned, since tied weights share memory, which safetensors refuses.
        plain[key] = value.clone() if place in memory else value
        memory.add(place)
    with replacing(path) as temporary:
        if path.suffix in TORCH_SUFFIXES:
            torch.save(plain, temporary)
        else:
            save_file(plain, temporary, metadata=dict(metadata) if metadata else None)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for torch files, which have none."""
    if Path(path).suffix in TORCH_SUFFIXES:
        return {}
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def load_weights(module: nn.Module, path: str | Path, component: Component | None = None) -> dict[str, Tensor]:
    """Load a file into a module, translating from the published layout if the file has it and the component knows it.

    Returns:
        tensors of the file that the module does not have, by their names without the prefix `EXTRA`.

    Raises:
        WeightsError: tensors are missing, surplus or of another shape; the message names the first few of each.
    """
    state = read_state_dict(path)
    layout = None if component is None else component.published
    if layout is not None and layout.recognises(state):
        state = layout.to_rearkit(state)
    own = {key: value for key, value in state.items() if not key.startswith(EXTRA)}
    try:
        fit_state_dict(module, own, str(path))
    except WeightsError as error:
        # With the settings that would fit: the usual cause is a recipe with other sizes.
        raise WeightsError(f"{error}{_needed(layout, own)}") from None
    return {key.removeprefix(EXTRA): value for key, value in state.items() if key.startswith(EXTRA)}


def convert(source: str | Path, target: Path, to: str, components: Sequence[Component]) -> Component:
    """Convert a file of weights between rearkit's layout and the published one.

    Args:
        source: the file to read.
        target: the file to write; its suffix selects the format, as in `write_state_dict`.
        to: ``"rearkit"`` or ``"published"``.
        components: the components to try.

    Returns:
        the component to which the weights belong.

    Raises:
        WeightsError: no component recognises the weights, or the file cannot be read.
    """
    state = read_state_dict(source)
    for component in components:
        layout = component.published
        if layout is None:
            continue
        if layout.recognises(state):
            ours = layout.to_rearkit(state)
        # Our own layout is recognised by its translation: a layout only has to know the published one.
        elif layout.recognises(layout.to_published(state)):
            ours = state
        else:
            continue
        write_state_dict(target, ours if to == "rearkit" else layout.to_published(ours), read_metadata(source))
        return component
    known = ", ".join(component.name for component in components if component.published is not None)
    raise WeightsError(f"{source}: not the weights of any component with a published layout ({known})")


def fit_state_dict(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load ``state`` into ``module``.

    Raises:
        WeightsError: they do not fit; see `load_weights`.
    """
    own = module.state_dict()
    # Compared here, since torch's message lists every tensor and fills pages.
    missing = [key for key in own if key not in state]
    surplus = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} where the recipe makes {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    parts = [
        f"{len(found)} {what} ({', '.join(found[:SHOWN])}{', …' if len(found) > SHOWN else ''})"
        for what, found in (("missing", missing), ("surplus", surplus), ("of another shape", shapes))
        if found
    ]
    if parts:
        raise WeightsError(
            f"{where}: weights do not fit the {type(module).__name__} of the recipe: tensors {'; '.join(parts)}"
        )
    module.load_state_dict(dict(state))


def _needed(layout: PublishedLayout | None, state: Mapping[str, Tensor]) -> str:
    """Return which settings a recipe needs for these weights, if their shapes show it."""
    # Not recognised: the weights of another component, whose sizes this layout cannot read.
    if layout is None or not layout.recognises(layout.to_published(state)):
        return ""
    try:
        sizes = layout.sizes(state)
    # Tensors are missing, which the message says already.
    except (KeyError, IndexError):
        return ""
    return f"; these weights need {', '.join(f'{name} = {value}' for name, value in sizes.items())}"
