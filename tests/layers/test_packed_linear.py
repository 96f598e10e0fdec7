from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rearkit.errors import RearkitError
from rearkit.layers.packed_linear import PackedLinear, can_halve, can_pack, half_weights

NEEDS_FBGEMM = pytest.mark.skipif(not can_halve(), reason="this torch or this machine has no FBGEMM")


def layer(inputs: int, outputs: int, seed: int = 0, bias: bool = True) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.booleans(), st.booleans())
@torch.no_grad()
def test_a_packed_layer_is_the_layer(inputs: int, outputs: int, rows: int, gelu: bool, bias: bool) -> None:
    linear, x = layer(inputs, outputs, bias=bias), torch.randn(rows, inputs)
    expected = F.gelu(linear(x)) if gelu else linear(x)
    torch.testing.assert_close(PackedLinear(linear, rows, gelu)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not can_pack(torch.empty(2, 2)), reason="this torch or this machine has no oneDNN")
@pytest.mark.parametrize("half", [False, pytest.param(True, marks=NEEDS_FBGEMM)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(768, 2304), (3072, 768), (768, 768), (128, 512), (512, 128), (32, 96), (16, 64)]
)
@torch.no_grad()
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    inputs: int, outputs: int, gelu: bool, half: bool, restored_threads: None
) -> None:
    linear, x = layer(inputs, outputs), torch.randn(256, inputs)

    def of_rows(first: int, rows: int) -> Tensor:
        with half_weights(half):
            return PackedLinear(linear, rows, gelu)(x[first : first + rows])

    expected = of_rows(0, 256)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for first, rows in ((0, 1), (3, 1), (1, 2), (0, 3), (9, 7), (5, 14), (2, 31), (100, 64), (1, 128), (0, 256)):
            assert torch.equal(of_rows(first, rows), expected[first : first + rows]), (threads, first, rows)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20))
@torch.no_grad()
def test_another_number_of_rows_than_it_was_packed_for_works(inputs: int, outputs: int, rows: int, others: int) -> None:
    linear, x = layer(inputs, outputs), torch.randn(others, inputs)
    torch.testing.assert_close(PackedLinear(linear, rows)(x), linear(x), rtol=1e-5, atol=1e-6)


@NEEDS_FBGEMM
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.booleans(), st.booleans())
@torch.no_grad()
def test_half_weights_are_rounded_and_nothing_else_is(
    inputs: int, outputs: int, rows: int, gelu: bool, bias: bool
) -> None:
    linear, x = layer(inputs, outputs, bias=bias), torch.randn(rows, inputs)
    with half_weights():
        packed = PackedLinear(linear, rows, gelu)
    linear.weight.copy_(linear.weight.half())
    expected = F.gelu(linear(x)) if gelu else linear(x)
    torch.testing.assert_close(packed(x), expected, rtol=1e-5, atol=1e-6)
    assert PackedLinear(linear, rows).halved is None  # outside of the context


def test_half_weights_that_nobody_takes_are_an_error() -> None:
    with pytest.raises(RearkitError, match="the backbone decodes without"), half_weights():
        PackedLinear(layer(8, 4).double(), 3)
    with half_weights(False):
        pass
    with pytest.raises(ValueError, match="theirs"), half_weights():
        raise ValueError("theirs")


@torch.no_grad()
def test_other_types_take_the_plain_layer() -> None:
    linear, x = layer(8, 4).double(), torch.randn(3, 8, dtype=torch.float64)
    packed = PackedLinear(linear, 3, gelu=True)
    assert not packed.packed
    assert torch.equal(packed(x), F.gelu(linear(x)))


@torch.no_grad()
def test_bfloat16_weights_follow() -> None:
    linear, x = layer(64, 32), torch.randn(4, 64)
    found: Tensor = PackedLinear(linear.bfloat16(), 4)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), linear.float()(x), rtol=2e-2, atol=2e-2)
