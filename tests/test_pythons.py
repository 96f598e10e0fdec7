"""What pyproject.toml, constraints.txt and the Makefile say about Pythons fits together."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import pythons
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


PROJECT = tomllib.loads((pythons.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = [
    Requirement(line)
    for line in (pythons.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for line in (*PROJECT["dependencies"], *EXTRAS["demo"], *EXTRAS["dev"])]


def on(version: str, system: str = "linux") -> dict[str, str]:
    return {
        "python_version": version,
        "python_full_version": f"{version}.1",
        "sys_platform": system,
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }


def holds(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("version", pythons.VERSIONS)
def test_each_dependency_has_one_pin_in_its_range(version: str, system: str) -> None:
    environment, pinned = on(version, system), {}
    for pin in PINS:
        if holds(pin, environment):
            assert pin.name not in pinned
            pinned[pin.name] = next(iter(pin.specifier)).version
    for needed in NEEDED:
        if holds(needed, environment):
            assert needed.specifier.contains(pinned[needed.name]), needed


def test_the_pythons_that_are_tested_are_those_that_are_promised() -> None:
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert tuple(classified) == pythons.VERSIONS
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert allowed.contains(pythons.VERSIONS[0]) and not allowed.contains("3.9")


def test_a_python_that_is_not_there_is_left_out() -> None:
    assert pythons.working("python2.0") is None
    assert pythons.working(sys.executable) == sys.executable
    assert pythons.version_of(sys.executable) == sys.version.split()[0]
    assert pythons.main(["python2.0"]) == 1


@pytest.mark.parametrize(("failing", "words"), [("pip", "installation failed"), ("rearkit", "recipe failed")])
def test_a_step_that_fails_is_named(
    failing: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, int(failing in command), "3 passed\nno wheel\n")

    monkeypatch.setattr(pythons, "run", run)
    assert pythons.tested(sys.executable, tmp_path / "rearkit.whl") == words
    assert "no wheel" in capsys.readouterr().out
    monkeypatch.setattr(pythons, "run", lambda command, folder: subprocess.CompletedProcess(command, 0, "9 passed\n"))
    assert pythons.tested(sys.executable, tmp_path / "rearkit.whl") == "passed: 9 passed"
