"""Weights for fine-tuning at other sizes: what fits is taken, the rest is initialised, and both are said."""

from __future__ import annotations

import attrs
from torch import Tensor

from rearkit.contracts import EXTRA, Backbone
from rearkit.errors import WeightsError
from rearkit.registry.component import Component
from rearkit.system.console import say_once
from rearkit.weights import check_finite, listed, translated_weights


@attrs.frozen(eq=False)
class Part:
    """What a backbone takes of a file.

    Attributes:
        taken: its tensors, some of them changed to its sizes.
        extra: tensors that it does not have, by their names without the prefix `EXTRA`.
        told: what was taken, changed, initialised and passed over, a line each.
    """

    taken: dict[str, Tensor]
    extra: dict[str, Tensor]
    told: list[str]


def fitting_part(backbone: Backbone, path: str, component: Component | None = None, key: str | None = None) -> Part:
    """Find what a backbone can take of a file of another size; the backbone may be on the meta device.

    Raises:
        WeightsError: nothing of the file fits, or what fits is not finite.
    """
    found = translated_weights(backbone, path, component, key)
    given = {name: value for name, value in found.items() if not name.startswith(EXTRA)}
    adapted, changed = backbone.adapted(given)
    own = backbone.state_dict()
    taken = {name: value for name, value in adapted.items() if name in own and own[name].shape == value.shape}
    # Of blocks with the same number in another model, say; a few numbers alone are no model to go on from.
    if sum(value.numel() for value in taken.values()) * 2 < sum(value.numel() for value in own.values()):
        raise WeightsError(
            f"{path}: less than half of the {type(backbone).__name__} of the recipe would be taken from it "
            f"({len(taken)} of {len(own)} tensors); these are not weights of this backbone at this width and depth"
        )
    # What is put together from a module on the meta device has no numbers.
    check_finite(backbone, {name: value for name, value in taken.items() if not value.is_meta}, path)
    fresh = [name for name in own if name not in taken]
    unused = [name for name in given if name not in own]
    told = [
        f"{path}: {len(taken)} of {len(own)} tensors taken" + (", some of them changed" if changed else ""),
        *changed,
        *([f"initialised: {listed(fresh)}"] if fresh else []),
        *([f"not used: {listed(unused)}"] if unused else []),
    ]
    extra = {name.removeprefix(EXTRA): value for name, value in found.items() if name.startswith(EXTRA)}
    return Part(taken, extra, told)


def load_part(
    backbone: Backbone, path: str, component: Component | None = None, key: str | None = None
) -> dict[str, Tensor]:
    """Load what fits of a file into a backbone, and say what does not.

    Returns:
        tensors of the file that the backbone does not have, by their names without the prefix `EXTRA`.

    Raises:
        WeightsError: see `fitting_part`.
    """
    part = fitting_part(backbone, path, component, key)
    backbone.load_state_dict(part.taken, strict=False)
    for line in part.told:
        say_once(f"[backbone] weights: {line}")
    return part.extra
