from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rearkit.planning.tracking import FusedAttention, LiveBytes


def test_live_bytes_follow_tensors_as_they_come_and_go() -> None:
    with torch.device("meta"), LiveBytes() as counted:
        first = torch.empty(10)
        second = first + 1
        view = second.view(2, 5)
        view.mul_(2)
        assert counted.live == 80
        del first
        assert (counted.live, counted.peak) == (40, 80)
        del second
        assert counted.live == 40  # the view holds it
        del view
        assert counted.live == 0


def test_what_autograd_keeps_counts_and_what_a_checkpoint_forgets_does_not() -> None:
    def layers(x: torch.Tensor) -> torch.Tensor:
        for _ in range(8):
            x = x.sin()
        return x

    def kept(checkpointed: bool) -> int:
        x = torch.empty(100, device="meta", requires_grad=True)
        with LiveBytes() as counted:
            out = checkpoint(layers, x, use_reentrant=False) if checkpointed else layers(x)
            live = counted.live
            del out
        return live

    assert kept(False) == 8 * 400
    assert kept(True) == 400


def test_gradients_of_parameters_are_counted_apart() -> None:
    module = nn.Linear(10, 20, device="meta")
    with LiveBytes(module.parameters()) as counted:
        module(torch.empty(3, 10, device="meta")).sum().backward()
        assert counted.gradients == 4 * (200 + 20)
        assert counted.live < counted.gradients
        assert counted.peak_with_gradients > counted.gradients
        module.zero_grad(set_to_none=True)
        assert counted.gradients == 0


def test_fused_attention_keeps_no_matrix_of_weights() -> None:
    query = torch.empty(1, 1, 100, 8, device="meta", requires_grad=True)
    with FusedAttention(), LiveBytes() as counted:
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        assert counted.peak == 4 * (100 * 8 + 100)
        out.sum().backward()
    assert query.grad is not None and query.grad.shape == query.shape
