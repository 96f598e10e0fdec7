from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rearkit.layers.cached_attention import attend_to_cache
from rearkit.layers.fusing import can_fuse, fusable, fusing, has_working_triton


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


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with Triton, about which nothing is known yet."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True if name == "triton" else found(name))
    monkeypatch.delenv("CC", raising=False)
    has_working_triton.cache_clear()
    yield
    has_working_triton.cache_clear()


@pytest.mark.parametrize("lack", ["compiler", "CC", "CC that is empty", "headers"])
def test_without_what_triton_compiles_with_a_gpu_attends_by_products_and_says_so_once(
    lack: str, triton: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if lack == "headers":
        monkeypatch.setattr(sysconfig, "get_path", lambda *scheme: str(tmp_path))
    elif lack == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CC", "" if "empty" in lack else str(tmp_path / "cc"))
    assert not can_fuse()
    with FakeTensorMode(), torch.device("cuda"):
        cache = torch.zeros(2, 3, 16, 8)
        assert attend_to_cache(torch.zeros(2, 3, 8), cache, cache, 5).shape == (2, 24)
    printed = " ".join("".join(capfd.readouterr()).split())
    assert printed.count("Triton cannot compile its kernels: it needs a C compiler") == 1


@pytest.mark.skipif(not shutil.which("gcc"), reason="there is no C compiler here")
def test_a_compiler_and_the_headers_of_python_are_all_that_triton_lacks(triton: None, tmp_path: Path) -> None:
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("there is no Python.h here")
    assert has_working_triton()
