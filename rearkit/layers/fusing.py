"""Compilation of the small steps of a decoder, so that a device launches one kernel where it launched several.

A step of a few rows spends its time in kernels that each read and write a few kilobytes: norms, modulations, gates.
torch's compiler joins those between two matrix products into one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import torch

from rearkit.system.console import say

P = ParamSpec("P")
R = TypeVar("R")

# A context variable, since a backbone's decoder calls its steps deep inside `step`, which has no argument for it.
_fusing: ContextVar[bool] = ContextVar("fusing", default=False)


def fusable(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of tensors be compiled within `fusing`; a part for backbones.

    Args:
        function: without side effects but on its arguments' tensors; it may write to views. A number that changes from
            call to call, such as a position, would compile it anew each time: pass the tensor at that position.
    """

    @functools.cache  # made at its first call, since importing the compiler takes seconds
    def compiled() -> Callable[P, R]:
        # `dynamic=False`: one version for each number of rows, since a batch's size does not change within a run.
        return torch.compile(function, dynamic=False)

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        return (compiled() if _fusing.get() else function)(*arguments, **keywords)

    return call


@contextlib.contextmanager
def fusing(on: bool = True) -> Iterator[None]:
    """Within this context, functions that are `fusable` are compiled when they are called first."""
    token = _fusing.set(on)
    try:
        yield
    finally:
        _fusing.reset(token)


def can_fuse() -> bool:
    """Return whether torch can compile for the GPU here, which takes Triton."""
    if not has_working_triton():
        return False
    from torch.utils._triton import has_triton

    return has_triton()


@functools.cache
def has_working_triton() -> bool:
    """Return whether Triton can launch kernels on the GPU here; if not, say once that sampling goes without."""
    # Triton comes with torch's builds for CUDA, but compiles its driver and its launchers where it runs.
    works = has_what_triton_needs()
    if not works:
        say(
            "sampling: on this GPU it is slower than it could be, since Triton cannot compile its kernels: it needs a "
            "C compiler (CC, gcc or clang) and Python.h, of a package such as python3-dev"
        )
    return works


def has_what_triton_needs() -> bool:
    """Return whether Triton is installed, and with it what it compiles its driver and its launchers with."""
    compiler = os.environ.get("CC", shutil.which("gcc") or shutil.which("clang"))
    if not compiler or importlib.util.find_spec("triton") is None:
        return False
    return compiles_extensions([compiler], "c")


def compiles_extensions(compiler: list[str], language: str) -> bool:
    """Return whether a compiler of a language (c, c++) finds the headers of Python, and so those of the C library."""
    # By this scheme, since Debian's own has another folder for what is installed later.
    include = sysconfig.get_path("include", "posix_prefix")
    command = [*compiler, "-fsyntax-only", f"-I{include}", f"-x{language}", "-"]
    try:
        return subprocess.run(command, input=b"#include <Python.h>", capture_output=True).returncode == 0
    # There is no such program.
    except OSError:
        return False
