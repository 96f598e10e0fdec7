"""Which software made something: for reports, and for the manifests of samples."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("rearkit", "torch", "deepspeed", "torch-fidelity")


def package_versions(*more: str) -> dict[str, str]:
    """Versions of the packages that results depend on, of ``more`` of them, and of Python."""
    found = {name: _version(name) for name in dict.fromkeys((*PACKAGES, *more))}
    return found | {"Python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """What the report was written with."""
    return package_versions() | {
        "platform": platform.platform(),
        "git revision of the working directory": git_revision(),
    }


def git_revision() -> str:
    """Revision of the current folder's git checkout, and whether tracked files have changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "not a git checkout"
    revision, dirty, _ = done.stdout.strip().partition("-dirty")
    return f"{revision}, with uncommitted changes" if dirty else f"{revision}, clean"
