from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rearkit.layers.lean import LeanLinear, causal_attention, drop_mask, dropout, dropped
from rearkit.planning.tracking import LiveBytes


def gradients(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), inputs))


def test_a_lean_layer_and_its_gradients_are_those_of_the_plain_one() -> None:
    torch.manual_seed(0)
    lean, plain = LeanLinear(5, 7), nn.Linear(5, 7)
    plain.load_state_dict(lean.state_dict())
    x, scale = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    kept = torch.rand(2, 3, 5) < 0.5
    ours = lean(x, scale, kept, prepare=lambda x, scale, kept: dropped(F.gelu(x) * scale, kept, 0.5))
    theirs = plain(F.gelu(x) * scale * kept * 2)
    torch.testing.assert_close(ours, theirs)
    found = gradients(ours, x, scale, lean.weight, lean.bias)
    for mine, other in zip(found, gradients(theirs, x, scale, plain.weight, plain.bias), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("prepare", [None, torch.sin])
def test_a_lean_layer_gives_the_gradients_that_are_wanted(bias: bool, frozen: bool, prepare: Any) -> None:
    layer = LeanLinear(3, 4, bias=bias, dtype=torch.float64)
    layer.weight.requires_grad_(not frozen)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    assert torch.autograd.gradcheck(lambda *given: layer(x, prepare=prepare), wanted)


def test_what_a_function_before_a_lean_layer_makes_is_not_kept() -> None:
    def kept(layer: nn.Linear) -> int:
        x = torch.randn(64, 8, requires_grad=True)
        with LiveBytes(layer.parameters()) as counted:
            out = layer(x, prepare=lambda x: x.sin().cos()) if isinstance(layer, LeanLinear) else layer(x.sin().cos())
            live = counted.live - out.numel() * 4
            del out
        return live

    assert kept(LeanLinear(8, 8)) == 0
    assert kept(nn.Linear(8, 8)) == 2 * 64 * 8 * 4


@pytest.mark.parametrize("places", [1, 63, 64, 130])
def test_attention_with_dropout_is_causal_attention_with_some_weights_dropped(places: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, places, 4, requires_grad=True) for _ in range(3))
    # At a rate of nearly zero nothing is dropped, so that torch's own attention must come out.
    ours, theirs = causal_attention(q, k, v, 1e-9), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    for mine, other in zip(gradients(ours, q, k, v), gradients(theirs, q, k, v), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)


def test_dropped_weights_are_the_same_in_the_backward_pass_and_make_up_for_one_another() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 100, 4), torch.randn(1, 1, 100, 4)
    v = torch.ones(1, 1, 100, 1, requires_grad=True)
    out = causal_attention(q, k, v, 0.3)
    (grad,) = torch.autograd.grad(out.sum(), v)
    torch.testing.assert_close((grad * v).sum(), out.sum())  # the output is linear in the values
    assert out.std() > 0.01
    many = torch.stack([causal_attention(q, k, v, 0.3).detach() for _ in range(200)]).mean()
    assert many.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dropped_attention_keeps_the_type(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(2, 3, 70, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    out = causal_attention(q, k, v, 0.1)
    assert {out.dtype, *(grad.dtype for grad in torch.autograd.grad(out.sum(), (q, k, v)))} == {dtype}


def test_dropout_drops_the_share_it_is_told_to_and_only_in_training() -> None:
    torch.manual_seed(0)
    x = torch.ones(100, 100)
    assert dropout(x, 0.3, training=False) is x and dropout(x, 0.0, training=True) is x
    for out in (dropout(x, 0.3, training=True), dropped(x, drop_mask(x, 0.3), 0.3)):
        assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
        torch.testing.assert_close(out[out > 0], torch.full_like(out[out > 0], 1 / 0.7))
