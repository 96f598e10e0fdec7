"""Where to compute, and seeds that depend on nothing but what is asked for."""

from __future__ import annotations

import hashlib

import torch

from rearkit.errors import RearkitError


def resolve_device(name: str) -> torch.device:
    """Turn a recipe's ``device`` into a torch device.

    Raises:
        RearkitError: CUDA is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RearkitError('device = "cuda", but torch sees no CUDA device here; use device = "auto" or "cpu"')
    return torch.device(name)


def derive_seed(*parts: int | str) -> int:
    """Mix numbers and words into a seed in [0, 2^63)."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed torch's global generators, so that what follows does not depend on what was drawn before."""
    torch.manual_seed(derive_seed(*parts))
