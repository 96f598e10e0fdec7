"""Components made by name are checked as a recipe's are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rearkit.contracts import NoiseContext, RegularizerContext, TokenSpace
from rearkit.errors import PluginError, RecipeError
from rearkit.recipe.by_name import make

SPACE = TokenSpace(4, 6, 3)
HEADS = RegularizerContext(8, 4, torch.zeros(6, 2))


def test_one_component_can_be_made_by_name() -> None:
    backbone = make("backbone", "dit-ar", SPACE, hidden_size=8, num_layers=1, num_heads=2)
    assert backbone.space.num_tokens == 4
    # A whole number where a number is expected, as in a recipe.
    assert make("noise", "linear", start_level=1, end_level=1).rates(0.0, 2, torch.Generator()).shape == (2,)


@pytest.mark.parametrize(
    ("kind", "name", "context", "settings", "message"),
    [
        ("backbone", "dit-ar", (SPACE,), {"layers": 3}, "layers: unknown key .*; known: .*num_layers"),
        ("backbone", "dit-ar", (SPACE,), {"num_layers": 0}, "num_layers: expected ≥ 1, got 0"),
        ("noise", "linear", (), {"start_level": "0.5"}, "noise 'linear': start_level: expected a number, got '0.5'"),
        ("noise", "linear", (), {"start_level": True}, "start_level: expected a number, got True"),
        ("noise", "linear", (), {"start_levle": 0.5}, r"start_levle: unknown key \(did you mean 'start_level'\?\)"),
        ("regularizer", "codebook-embedding", (HEADS,), {"projection_dim": 64.0}, "expected a whole number, got 64.0"),
    ],
)
def test_settings_are_checked_as_a_recipes_are(
    kind: str, name: str, context: tuple[Any, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make(kind, name, *context, **settings)


@pytest.mark.parametrize(
    ("kind", "name", "context", "message"),
    [
        ("backbone", "dit-at", (SPACE,), r"unknown backbone 'dit-at' \(did you mean 'dit-ar'\?\)"),
        ("noises", "linear", (), r"unknown kind of component 'noises' \(did you mean 'noise'\?\); kinds: dataset, "),
        ("backbone", "dit-ar", (), "'dit-ar': needs a TokenSpace of rearkit.contracts after its name; found nothing"),
        ("regularizer", "codebook-embedding", (SPACE,), "needs a RegularizerContext of .*; found TokenSpace"),
        ("noise", "linear", (NoiseContext(SPACE, torch.zeros(6, 2)),), "needs its settings alone; found NoiseContext"),
    ],
)
def test_another_name_or_context_is_refused(kind: str, name: str, context: tuple[Any, ...], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        make(kind, name, *context)
