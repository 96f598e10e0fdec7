"""Which software made something: for reports, and for the manifests of samples."""

from __future__ import annotations

import platform
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
