"""By pip alone: what is built has all files, and runs outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where rearkit is looked for in a shell, less what would find the checkout.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def done(*command: str | Path, cwd: Path) -> str:
    finished = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


def built(what: str, source: Path, target: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` as pip does, with the setuptools that is installed here."""
    script = f"import setuptools.build_meta as b, sys; print(b.build_{what}(sys.argv[1]))"
    return target / done(sys.executable, "-c", script, target, cwd=source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel built from the tree, and one from the sdist that was built from it."""
    place = tmp_path_factory.mktemp("built")
    source = place / "tree"  # a copy, since setuptools leaves folders beside what it builds
    leave = shutil.ignore_patterns("__pycache__", ".*", "build", "*.egg-info", "runs", "site")
    for folder in ("rearkit", "recipes"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=leave)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    with tarfile.open(built("sdist", source, place)) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    again = place / "again"
    again.mkdir()
    return built("wheel", source, place), built("wheel", unpacked, again)


@pytest.fixture(scope="module")
def installed(wheels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with rearkit alone; its dependencies are those of this one."""
    place = tmp_path_factory.mktemp("environment")
    done(sys.executable, "-m", "venv", "--without-pip", place, cwd=place)
    bin_ = place / "bin"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheels[1])
    done(sys.executable, "-m", "pip", "--python", bin_ / "python", *install, cwd=place)
    (packages,) = place.glob("lib/python*/site-packages")
    # A path in such a file is searched last, and its own .pth files, which might lead to a checkout, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return bin_


def test_the_wheel_has_the_files_of_the_tree(wheels: tuple[Path, Path]) -> None:
    tree = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rearkit").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {f"rearkit/_recipes/{p.relative_to(ROOT / 'recipes')}" for p in (ROOT / "recipes").rglob("*.toml")}
    assert len(tree) > 100 and len(recipes) > 20
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            files = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert files == tree | recipes


def test_what_is_installed_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    where = done(installed / "python", "-c", "import rearkit; print(rearkit.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    listing = done(installed / "rearkit", "recipes", cwd=tmp_path)
    assert f"in {installed.parent.resolve()}" in listing and "  smoke " in listing
    said = done(installed / "python", "-m", "rearkit", "run", "smoke", cwd=tmp_path)
    assert "finished in" in said
    assert (tmp_path / "runs" / "smoke" / "report.html").is_file()
    assert "nothing to do" in done(installed / "rearkit", "run", "smoke", cwd=tmp_path)
    made = done(installed / "rearkit", "new-plugin", "mine", cwd=tmp_path)
    assert "pip install -e rearkit-mine" in made
