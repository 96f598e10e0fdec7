from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rearkit.errors import RearkitError
from rearkit.system.devices import derive_seed, resolve_device, seed_everything

parts = st.lists(st.integers(0, 10**9) | st.sampled_from(["batch", "epoch", "sample"]), min_size=1, max_size=4)


@given(parts)
def test_a_seed_is_a_function_of_its_parts_and_fits_every_generator(values: list[int | str]) -> None:
    seed = derive_seed(*values)
    assert seed == derive_seed(*values)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


@given(parts, parts)
def test_other_parts_make_another_seed(first: list[int | str], second: list[int | str]) -> None:
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


def test_seeding_makes_draws_independent_of_what_was_drawn_before() -> None:
    draws = []
    for before in (0, 5):
        torch.rand(before)
        seed_everything(3, "dropout", 7)
        draws.append(torch.rand(4))
    assert torch.equal(*draws)


def test_a_device_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(RearkitError, match='device = "cuda", but torch sees no CUDA device here'):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")
