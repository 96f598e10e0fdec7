from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rearkit.layers.fusing import fusable, fusing


@fusable
def doubled(x: Tensor, out: Tensor) -> Tensor:
    """Return the double, and write it to a view."""
    out.copy_(2 * x)
    return 2 * x


def test_it_is_compiled_within_the_context_only(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def spy(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append((function.__name__, options))
        return function

    monkeypatch.setattr(torch, "compile", spy)
    place = torch.zeros(4, 3)
    assert doubled(torch.ones(3), place[1]).tolist() == [2, 2, 2]
    assert not compiled
    with fusing():
        doubled(torch.ones(3), place[2])
        with fusing(False):
            doubled(torch.ones(3), place[3])
        doubled(torch.ones(3), place[3])
    assert compiled == [("doubled", {"dynamic": False})]
    assert place.sum(1).tolist() == [0, 6, 6, 6]
    assert doubled.__doc__ and doubled.__name__ == "doubled"
