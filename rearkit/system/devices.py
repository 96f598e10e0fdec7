"""The device to compute on, and seeds that depend only on their arguments."""

from __future__ import annotations

import hashlib

import torch

from rearkit.errors import RearkitError


def resolve_device(name: str) -> torch.device:
    """Turn a recipe's ``device`` (``auto``, ``cpu`` or ``cuda``) into a torch device.

    Raises:
        RearkitError: the recipe asks for CUDA and torch finds no CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RearkitError('device = "cuda", but torch sees no CUDA device here; use device = "auto" or "cpu"')
    # By default cuDNN rounds float32 to 10 bits of mantissa; images at a near tie would get other tokens than on a CPU.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def check_ranks(name: str, ranks: int) -> None:
    """Check that each of the ranks on this machine has a GPU of its own, where a recipe's ``device`` is one.

    Raises:
        RearkitError: there are more ranks than GPUs.
    """
    if resolve_device(name).type == "cuda" and ranks > (seen := torch.cuda.device_count()):
        raise RearkitError(
            f'--num-gpus: {ranks} ranks, and torch sees {seen} GPU(s); use --num-gpus {seen} or device = "cpu"'
        )


def derive_seed(*parts: int | str) -> int:
    """Hash numbers and words to a seed in [0, 2^63)."""
    # Not `hash`: Python salts the hash of a string anew in each process.
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    # The shift drops a bit, so that the seed fits a signed integer of 64 bits.
    return int.from_bytes(digest[:8], "little") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed torch's global generators, so that what follows does not depend on random numbers drawn before."""
    torch.manual_seed(derive_seed(*parts))
