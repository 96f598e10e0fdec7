"""Real distributions in folders that are put on PYTHONPATH, and rearkit run as its users run it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
CHECKOUT = Path(__file__).parents[2]  # also where another checkout is the one that is installed


def python(*arguments: str, path: Sequence[Path] = (), cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [*path, CHECKOUT])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def rearkit(tmp_path: Path) -> Command:
    """Run ``python -m rearkit`` away from the checkout, with folders of distributions on PYTHONPATH."""

    def run(*arguments: str, path: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
        return python("-m", "rearkit", *arguments, path=path, cwd=tmp_path)

    return run


@pytest.fixture
def brief() -> list[str]:
    """Options that make a run on digits one of seconds; what it makes is not looked at."""
    settings = {
        "data.source.train_per_class": 2,
        "data.source.held_out_per_class": 1,
        "tokenizer.fit.steps": 2,
        "tokenizer.fit.warmup_steps": 1,
        "tokenizer.fit.batch": 4,
        "tokenizer.fit.min_psnr": 0,
        "tokens.min_psnr": 0,
        "tokens.min_codebook_use": 0,
        "train.steps": 2,
        "train.warmup_steps": 1,
        "train.global_batch": 4,
        "train.log_every": 1,
        "sample.num_images": 10,
        "evaluate.classifier.steps": 1,
        "evaluate.classifier.min_accuracy": 0,
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def own_tests() -> Command:
    """Run a package's own tests in a process of their own, in its folder."""

    def run(project: Path, path: Sequence[Path]) -> subprocess.CompletedProcess[str]:
        return python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(project), path=path, cwd=project)

    return run


@pytest.fixture
def install(tmp_path: Path) -> Callable[[Path], Path]:
    """Let pip build a package's wheel from a copy of its folder, and install it into a folder of its own.

    Nothing is downloaded: setuptools, which builds the wheel, comes with the development dependencies.
    """

    def build_and_install(project: Path) -> Path:
        copy, target = tmp_path / "copy", tmp_path / "site"
        shutil.copytree(project, copy, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
        done = python("-m", "pip", "install", *options, "--target", str(target), str(copy))
        assert done.returncode == 0, done.stderr
        return target

    return build_and_install


@pytest.fixture
def distribution(tmp_path: Path) -> Callable[..., Path]:
    """Write an installed distribution by hand: a module, and a .dist-info with an entry point that names it."""

    def write(name: str, code: str, version: str = "1.0") -> Path:
        module = name.replace("-", "_")
        target = tmp_path / f"site-{name}"
        info = target / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (target / f"{module}.py").write_text(code, encoding="utf-8")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[rearkit]\nplugin = {module}\n", encoding="utf-8")
        return target

    return write
