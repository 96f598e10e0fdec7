"""Install rearkit's wheel under each Python that is found, run a recipe and the fast tests there, print a table.

    python tests/helpers/pythons.py [PYTHON ...]

PYTHON is an interpreter, such as python3.12; by default each of python3.10 to python3.13 that is found. An environment
takes 6 GB of disk while it is tested, and goes before the next one comes. Where uv is found it installs, in a fraction
of pip's time; it looks for packages on PyPI only, unless its own variables say more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
# Tests that take seconds each and need no checkout but their own files.
FAST = ("tests/system", "tests/recipe", "tests/registry", "tests/data", "tests/components/noise", "tests/layers")
# Compares the recipes with those of the checkout.
NOT = "tests/recipe/test_recipe_files.py"
FAST_FILES = ("tests/test_objective.py", "tests/test_public_api.py", "tests/training/test_engine.py")
LAST_LINES = 15


def main(names: list[str]) -> int:
    """Test each interpreter; return 1 if one of them failed, or if there is none."""
    found = [path for path in map(working, names or [f"python{version}" for version in VERSIONS]) if path]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = built_wheel(Path(folder), found[0]) if found else Path()
        for python in found:
            began = time.monotonic()
            result = tested(python, wheel)
            rows.append((version_of(python), round(time.monotonic() - began), result))
            print(*rows[-1], flush=True)
    print("\n| Python | seconds | result |\n| --- | --- | --- |")
    for row in rows:
        print("| {} | {} | {} |".format(*row))
    return 0 if rows and all(result.startswith("passed") for _, _, result in rows) else 1


def working(name: str) -> str | None:
    """Return the path of an interpreter that can be started; a version manager's stand-in may start none."""
    path = shutil.which(name)
    return path if path and run([path, "-c", ""]).returncode == 0 else None


def built_wheel(folder: Path, python: str) -> Path:
    """Build the wheel from a copy of the sources, since a build leaves files beside them."""
    copy = folder / "sources"
    shutil.copytree(ROOT / "rearkit", copy / "rearkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    run([python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, copy], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def tested(python: str, wheel: Path) -> str:
    """Install, run the recipe and the tests; return what came of it in words."""
    with tempfile.TemporaryDirectory() as name:
        folder, inside = Path(name), Path(name) / "venv" / "bin" / "python"
        # Away from the checkout, so that the wheel is what is imported.
        tests = folder / "checkout" / "tests"
        shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "recipes", folder / "checkout" / "recipes")
        shutil.copy(ROOT / "pyproject.toml", folder / "checkout")
        needed = [f"{wheel}[demo]", "pytest", "hypothesis"]
        fast = [*FAST, *FAST_FILES, f"--ignore={NOT}", "--quiet", "-p", "no:cacheprovider", "-m", "not slow"]
        steps = {
            "environment": [python, "-m", "venv", folder / "venv"],
            "installation": [*installing(inside), "--constraint", ROOT / "constraints.txt", *needed],
            "recipe": [inside, "-m", "rearkit", "run", "recipes/smoke.toml", "--out", folder / "smoke"],
            "tests": [inside, "-m", "pytest", *fast],
        }
        for step, command in steps.items():
            began = time.monotonic()
            done = run(command, folder / "checkout")
            print(f"{python}: {step}, {time.monotonic() - began:.0f} s, exit code {done.returncode}", flush=True)
            last = done.stdout.splitlines()[-LAST_LINES:]
            if done.returncode:
                print(*last, sep="\n", flush=True)
                return f"{step} failed"
        return f"passed: {last[-1].strip()}"


def installing(python: Path) -> list[str | Path]:
    """Return the command that installs into an environment."""
    uv = shutil.which("uv")
    return [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]


def version_of(python: str) -> str:
    """Return an interpreter's version."""
    return run([python, "-c", "import platform; print(platform.python_version())"]).stdout.strip()


def run(command: list[str | Path], folder: Path | None = None, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command, its output and errors as one text."""
    # One thread each, since threads that wait for one another stall on a busy machine.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    environment = {key: value for key, value in environment.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(command, cwd=folder, env=environment, text=True, check=check, **both)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
