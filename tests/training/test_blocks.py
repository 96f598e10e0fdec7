from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rearkit.errors import RecipeError
from rearkit.model import Model, build
from rearkit.recipe.tables import Recipe
from rearkit.training.blocks import prepared_blocks


@pytest.fixture(scope="module")
def make(tiny: Callable[..., Recipe]) -> Callable[..., Model]:
    def build_with(**table: Any) -> Model:
        model = build(tiny(train=table, backbone={"dropout": 0.2, "attention_dropout": 0.2}))
        torch.manual_seed(5)
        for parameter in model.backbone.parameters():  # a fresh model's blocks are shut
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
        return model

    return build_with


def gradients(model: Model) -> tuple[dict[str, Tensor], int]:
    """Gradients of a step with dropout, and how many numbers its forward pass keeps for the backward pass."""
    backbone = model.backbone.train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    torch.manual_seed(3)
    tokens, classes = torch.randint(12, (4, 16)), torch.randint(10, (4,))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits, hidden = backbone(tokens, classes, (0, 1))
        loss = logits.square().mean() + hidden[0].square().mean() + hidden[1].mean()
    loss.backward()
    return {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}, sum(kept.values())


def test_checkpointing_changes_no_gradient_and_keeps_less(make: Callable[..., Model]) -> None:
    expected, kept = gradients(make())
    model = make(activation_checkpointing=True)
    with prepared_blocks(model):
        found, kept_then = gradients(model)
    assert expected.keys() == found.keys() and len(found) > 20
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert kept_then < kept / 2


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(make: Callable[..., Model]) -> None:
    plain, model = make(), make(compile=True)
    for each in (plain, model):
        each.backbone.eval()
    tokens, classes = torch.randint(12, (4, 16)), torch.randint(10, (4,))
    expected, _ = plain.backbone.forward(tokens, classes)
    with prepared_blocks(model):
        logits, _ = model.backbone.forward(tokens, classes)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_nothing_is_left_behind(make: Callable[..., Model]) -> None:
    model = make(activation_checkpointing=True, compile=True)
    names = list(model.backbone.state_dict())
    with prepared_blocks(model):
        assert list(model.backbone.state_dict()) == names
    assert not any("forward" in vars(module) for module in model.backbone.modules())


def test_a_backbone_that_does_not_name_its_blocks_is_told(make: Callable[..., Model]) -> None:
    import attrs

    class Whole(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens

    model = attrs.evolve(make(activation_checkpointing=True), backbone=Whole())
    with (
        pytest.raises(RecipeError, match="activation_checkpointing: backbone 'dit-ar' does not name"),
        prepared_blocks(model),
    ):
        pass
    plain = attrs.evolve(make(), backbone=Whole())
    with prepared_blocks(plain):
        pass
