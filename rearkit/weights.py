"""Reading and writing weights: safetensors, or torch files with ``weights_only=True``; never arbitrary pickles."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rearkit.contracts import EXTRA, PublishedLayout
from rearkit.errors import WeightsError
from rearkit.registry.component import Component
from rearkit.system.console import say_once
from rearkit.system.files import replacing
from rearkit.system.hub import local_file
from rearkit.system.weight_files import is_safetensors, read_state_dict

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# What wrappers put into names: torch.compile, FSDP and activation checkpointing before those of the module wrapped, ...
WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# ... and DDP, EMA classes and trainers before all of them, one around the other.
PREFIXES = (
    *("module.", "model.", "net.", "network.", "backbone.", "tokenizer.", "generator.", "transformer.", "vqgan."),
    *("ema.", "model_ema.", "ema_model."),
)
WRAPPERS_DEEP = 3
# What a trainer keeps beside the module, passed over where the module has no such names.
ASIDE = ("loss.", "perceptual_loss.", "criterion.", "discriminator.", "ema.", "model_ema.", "ema_model.")
# Tensors named in an error message.
SHOWN = 3


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
            # Given a name, torch would write it into the file, with the number of this process.
            with temporary.open("wb") as file:
                torch.save(plain, file)
        else:
            save_file(plain, temporary, metadata=dict(metadata) if metadata else None)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for torch files, which have none."""
    path = local_file(path)
    if not is_safetensors(path):
        return {}
    with safetensors.safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def load_weights(
    module: nn.Module, path: str | Path, component: Component | None = None, key: str | None = None
) -> dict[str, Tensor]:
    """Load a file into a module, translating from the published layout if the file has it and the component knows it.

    Returns:
        tensors of the file that the module does not have, by their names without the prefix `EXTRA`.

    Raises:
        WeightsError: see `matching_weights`.
    """
    own, extra = matching_weights(module, path, component, key)
    module.load_state_dict(own)
    return extra


def matching_weights(
    module: nn.Module, path: str | Path, component: Component | None = None, key: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Find a module's weights in a file, without loading them; the module may be on the meta device.

    Args:
        module: whose names and shapes they must have.
        path: the file.
        component: knows the published layout, which is translated.
        key: which of the file's state dicts; see `rearkit.system.weight_files.read_state_dict`.

    Returns:
        the module's tensors, and those that it does not have, by their names without the prefix `EXTRA`.

    Raises:
        WeightsError: tensors are missing, surplus, of another shape or not finite; the message names the first few of
            each.
    """
    best = translated_weights(module, path, component, key)
    own = {name: value for name, value in best.items() if not name.startswith(EXTRA)}
    try:
        check_fit(module, own, str(path))
    except WeightsError as error:
        # With the settings that would fit: the usual cause is a recipe with other sizes.
        raise WeightsError(f"{error}{_needed(component, own)}") from None
    check_finite(module, own, str(path))
    return own, {name.removeprefix(EXTRA): value for name, value in best.items() if name.startswith(EXTRA)}


def translated_weights(
    module: nn.Module, path: str | Path, component: Component | None = None, key: str | None = None
) -> dict[str, Tensor]:
    """Read a file's tensors, by a module's names as far as it has them; see `matching_weights`."""
    state = read_state_dict(path, key)
    layout = None if component is None else component.published
    names = module.state_dict().keys()
    # The names as they are come first, then those without prefixes; the nearest is what an error is about.
    best = max((_translated(layout, variant) for variant in _variants(state)), key=lambda one: len(names & one.keys()))
    aside = [name for name in best if name.startswith(ASIDE) and name not in names]
    if aside:
        say_once(f"{path}: {len(aside)} tensors passed over, such as {aside[0]}")
    return {name: value for name, value in best.items() if name not in aside}


def convert(
    source: str | Path, target: Path, to: str, components: Sequence[Component], key: str | None = None
) -> Component:
    """Convert a file of weights between rearkit's layout and the published one.

    Args:
        source: the file to read.
        target: the file to write; its suffix selects the format, as in `write_state_dict`.
        to: ``"rearkit"`` or ``"published"``.
        components: the components to try.
        key: which of the file's state dicts, as for `load_weights`.

    Returns:
        the component to which the weights belong.

    Raises:
        WeightsError: no component recognises the weights, or the file cannot be read.
    """
    layouts = [(component, component.published) for component in components if component.published is not None]
    variants = list(_variants(read_state_dict(source, key)))
    # Our own layout is recognised by its translation, since a layout only has to know the published one.
    for recognises in (_recognises, _is_ours):
        for variant, (component, layout) in itertools.product(variants, layouts):
            state = {name: value for name, value in variant.items() if not name.startswith(ASIDE)}
            if recognises(layout, state):
                ours = layout.to_rearkit(state) if recognises is _recognises else dict(state)
                written = ours if to == "rearkit" else layout.to_published(ours)
                if aside := [name for name in variant if name not in state]:
                    say_once(f"{source}: {len(aside)} tensors left out, such as {aside[0]}")
                write_state_dict(target, written, read_metadata(source))
                return component
    known = ", ".join(component.name for component, _ in layouts)
    raise WeightsError(f"{source}: not the weights of any component with a published layout ({known})")


def classes_of(path: str | Path, component: Component, key: str | None = None) -> int | None:
    """Return how many classes weights are of, if a published layout tells it from their shapes."""
    layout = component.published
    if layout is None:
        return None
    for variant in _variants(read_state_dict(path, key)):
        found = _translated(layout, variant)
        if _is_ours(layout, found):
            try:
                classes = layout.sizes(found).get("classes")
            # Tensors are missing, or of other shapes.
            except (LookupError, ValueError, ArithmeticError):
                continue
            return None if classes is None else int(classes)
    return None


def _variants(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yield a state dict as it is, then without what wrappers put before its names."""
    yield state
    level: list[Mapping[str, Tensor]] = [{_unwrapped(name): value for name, value in state.items()}]
    yield from level
    for _ in range(WRAPPERS_DEEP):
        level = [
            _without(one, prefix) for one in level for prefix in PREFIXES if any(k.startswith(prefix) for k in one)
        ]
        yield from level


def _unwrapped(name: str) -> str:
    for part in WRAPPED:
        name = name.replace(part, "")
    return name


def _without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return {name: value for name, value in state.items() if not name.startswith(prefix)} | inside


def _recognises(layout: PublishedLayout, state: Mapping[str, Tensor]) -> bool:
    """Ask a layout, which may be a plugin's and fail on weights that it was not written for."""
    try:
        return bool(layout.recognises(state))
    except Exception:
        return False


def _is_ours(layout: PublishedLayout, state: Mapping[str, Tensor]) -> bool:
    """Return whether weights are in rearkit's layout of the component that a published layout belongs to."""
    try:
        return bool(layout.recognises(layout.to_published(state)))
    except Exception:
        return False


def _translated(layout: PublishedLayout | None, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if layout is not None and _recognises(layout, state):
        return layout.to_rearkit(state)
    return dict(state)


def fit_state_dict(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load ``state`` into ``module``.

    Raises:
        WeightsError: they do not fit, or are not finite; see `matching_weights`.
    """
    check_fit(module, state, where)
    check_finite(module, state, where)
    module.load_state_dict(dict(state))


def check_fit(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Compare names and shapes of ``state`` with those of ``module``, which may be on the meta device.

    Raises:
        WeightsError: they do not fit; see `matching_weights`.
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
        f"{len(found)} {what} ({listed(found)})"
        for what, found in (("missing", missing), ("surplus", surplus), ("of another shape", shapes))
        if found
    ]
    if parts:
        raise WeightsError(
            f"{where}: weights do not fit the {type(module).__name__} of the recipe: tensors {'; '.join(parts)}"
        )


def check_finite(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Check that all numbers of ``state`` are numbers; a module with others computes nothing, without a word.

    Raises:
        WeightsError: some parameters are NaN or infinite, or buffers NaN; the message names the first few.
    """
    # Buffers may be infinite, as masks of attention are.
    parameters = dict(module.named_parameters())
    bad = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not _all_finite(value) and (name in parameters or value.isnan().any())
    ]
    if bad:
        raise WeightsError(
            f"{where}: {len(bad)} tensors are NaN or infinite ({listed(bad)}); the file is damaged, or its training "
            "diverged: take an earlier checkpoint"
        )


def _all_finite(value: Tensor) -> bool:
    # A sum needs no memory of the tensor's size. It can only be infinite by itself for the largest float64.
    return bool(value.sum(dtype=torch.float64).isfinite()) or bool(value.double().isfinite().all())


def listed(names: Sequence[str]) -> str:
    """Return the first few of some names, for a message."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _needed(component: Component | None, state: Mapping[str, Tensor]) -> str:
    """Return which settings a recipe needs for these weights, if their shapes show it."""
    layout = None if component is None else component.published
    # Not recognised: the weights of another component, whose sizes this layout cannot read.
    if layout is None or not _is_ours(layout, state):
        return ""
    try:
        sizes = layout.sizes(state)
    # Tensors are missing, which the message says already.
    except Exception:
        return ""
    return f"; these weights need {', '.join(f'{name} = {value}' for name, value in sizes.items())}"
