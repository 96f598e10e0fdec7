"""Versions of the software that produced a result, for reports and for the manifests of samples."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("rearkit", "torch", "deepspeed", "torch-fidelity")


def package_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that results depend on, and of the packages in ``more``."""
    found = {name: _version(name) for name in dict.fromkeys((*PACKAGES, *more))}
    return found | {"Python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Return the versions, platform and git revision for a report."""
    return package_versions() | {
        "platform": platform.platform(),
        "git revision of the working directory": git_revision(),
    }


def git_revision() -> str:
    """Return the git revision of the current folder, and whether tracked files have changed since."""
    try:
        revision = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "not a git checkout"
    return f"{revision}, with uncommitted changes" if changed else f"{revision}, clean"


def _git(*words: str) -> str:
    # Without a lock: ended by a full disk or the timeout, git would leave it, and refuse all further work there. The
    # timeout is for checkouts on slow network disks: a report is not worth more than seconds.
    command = ["git", "--no-optional-locks", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
