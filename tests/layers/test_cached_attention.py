from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rearkit.layers.cached_attention import attend_by_products, attend_to_cache, cache_length


def drawn(rows: int, heads: int, width: int, places: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """A query, and caches with something in each of their places."""
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, heads, cache_length(places), width)
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in ((rows, heads, width), shape, shape))


@given(
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(1, 50),
    st.integers(1, 40),
    st.integers(0, 40),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_it_is_attention_to_the_places_that_are_filled(
    rows: int, heads: int, width: int, end: int, ahead: int, dtype: torch.dtype
) -> None:
    query, keys, values = drawn(rows, heads, width, end + ahead, dtype)
    keys[:, :, end:], values[:, :, end:] = torch.nan, torch.nan
    filled = (query[:, :, None].double(), keys[:, :, :end].double(), values[:, :, :end].double())
    expected = F.scaled_dot_product_attention(*filled, scale=1.0).flatten(1)
    found = attend_to_cache(query, keys, values, end)
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("heads", "width"), [(16, 48), (12, 64), (2, 16), (3, 20)])
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    heads: int, width: int, restored_threads: None
) -> None:
    query, keys, values = drawn(64, heads, width, 70)
    for end in (1, 15, 16, 17, 69):
        torch.set_num_threads(2)
        expected = attend_to_cache(query, keys, values, end)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for first, rows in ((0, 2), (6, 8), (13, 6), (0, 64)):
                part = slice(first, first + rows)
                found = attend_to_cache(query[part], keys[part], values[part], end)
                assert torch.equal(found, expected[part]), (end, threads, first, rows)


def test_off_the_cpu_and_without_triton_it_is_the_same_by_products() -> None:
    for end in (1, 5, 33):
        tensors = drawn(4, 3, 16, 40)
        torch.testing.assert_close(attend_by_products(*tensors, end), attend_to_cache(*tensors, end))
    query, keys, values = (tensor.to("meta") for tensor in drawn(2, 3, 16, 8))
    assert attend_to_cache(query, keys, values, 5).shape == (2, 48)


class Products(TorchDispatchMode):
    """Notes the inner dimension of each product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.inner: list[int] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if operator is torch.ops.aten.bmm.default:
            self.inner.append(arguments[0].shape[2])
        return operator(*arguments, **(keywords or {}))


def test_products_do_without_triton_at_every_position() -> None:
    """torch computes products whose inner dimension is 1 by Triton on a GPU, and fails without a compiler."""
    with Products() as seen:
        for end in (1, 2, 3):
            attend_by_products(*drawn(4, 3, 16, 40), end)
    assert seen.inner == [16, 2, 16, 3]


# Triton can run a kernel on a CPU, slowly, where this variable is set before it is imported.
INTERPRETED = """
import torch
from rearkit.layers.cached_attention import attend_by_products, cache_length
from rearkit.layers.cached_attention_kernel import attend

torch.manual_seed(0)
for rows, heads, width, end in ((3, 2, 48, 1), (2, 3, 64, 70), (2, 1, 20, 33), (1, 2, 128, 130)):
    for dtype in (torch.float32, torch.bfloat16):
        cache = torch.randn(2, rows, heads, cache_length(end + 3), width).to(dtype)
        cache[:, :, :, end:] = torch.nan
        query = (torch.randn(rows, heads, width) * width**-0.5).to(dtype)
        expected = attend_by_products(query.double(), *cache.double(), end)
        found = attend(query, *cache, end)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 1e-2)
"""


def test_the_kernel_computes_the_same() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
