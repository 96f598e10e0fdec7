"""A look at a file of Inception's weights before the first stage, without loading torch-fidelity."""

from __future__ import annotations

from pathlib import Path

from rearkit.errors import WeightsError
from rearkit.recipe.tables import EvaluateTable
from rearkit.system.weight_files import read_state_dict

SHAPES = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Mixed_6d.branch1x1.conv.weight": (192, 768, 1, 1),
    "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    "fc.weight": (1008, 2048),
}
"""Some tensors of torch-fidelity's port; torchvision's Inception has 1,000 classes and an auxiliary head instead."""


def check_inception_weights(table: EvaluateTable) -> list[str]:
    """Return what is wrong with the ``feature_weights`` of a recipe; nothing if they will not be read."""
    if table.features != "inception" or table.feature_weights is None or not Path(table.feature_weights).is_file():
        return []
    try:
        state = read_state_dict(table.feature_weights)
    except WeightsError as error:
        return [f"[evaluate] feature_weights: {error}"]
    for name, shape in SHAPES.items():
        if name not in state or tuple(state[name].shape) != shape:
            found = f"with {name} {tuple(state[name].shape)}" if name in state else f"without {name}"
            return [
                f"[evaluate] feature_weights: {table.feature_weights}: not torch-fidelity's Inception, {found}; leave "
                "the key out to have the weights downloaded, or name pt_inception-2015-12-05-6726825d.pth"
            ]
    return []
