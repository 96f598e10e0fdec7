"""Broken distributions, seen from the command line: told by name and reason, and out of everybody else's way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., "subprocess.CompletedProcess[str]"]
TINY = """
name = "tiny"
[data.source]
name = "mnist-5k"
[tokenizer]
name = "maskgit-vqgan"
fit = {}
[backbone]
name = "dit-ar"
num_layers = 1
hidden_size = 16
[noise]
name = "NOISE"
[train]
steps = 2
global_batch = 4
[sample]
num_images = 4
"""


def test_a_plugin_that_does_not_import_is_listed_and_the_rest_works(
    distribution: Callable[..., Path], rearkit: Command, tmp_path: Path
) -> None:
    site = distribution("rearkit-broken", "raise ImportError('libmissing.so: cannot open [file]')", version="0.3")
    (tmp_path / "tiny.toml").write_text(TINY.replace("NOISE", "linear"), encoding="utf-8")
    (tmp_path / "other.toml").write_text(TINY.replace("NOISE", "theirs"), encoding="utf-8")

    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0
    assert "failed to load: rearkit-broken 0.3: ImportError: libmissing.so: cannot open [file]" in listed.stdout
    assert "noise linear" in listed.stdout

    shown = rearkit("show", "tiny.toml", path=[site])
    assert shown.returncode == 0, shown.stderr
    assert "dit-ar" in shown.stdout

    refused = rearkit("show", "other.toml", path=[site])
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "unknown noise 'theirs'" in refused.stderr
    assert "rearkit-broken 0.3 failed to load (ImportError: libmissing.so" in refused.stderr


def test_a_name_of_two_packages_stops_only_who_asks_for_it(
    distribution: Callable[..., Path], rearkit: Command, tmp_path: Path
) -> None:
    code = """
from rearkit import Component, hookimpl, settings

@settings
class Mine:
    \"\"\"Mine.\"\"\"

@hookimpl
def rearkit_components():
    return [Component("noise", "linear", Mine, lambda schedule: schedule)]
"""
    site = distribution("rearkit-taken", code)
    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0, listed.stderr
    assert "also provided by rearkit-taken 1.0: recipes cannot name it" in listed.stdout
    assert "also provided by rearkit 0.1.0: recipes cannot name it" in listed.stdout

    for noise, code_ in (("linear", 2), ("random", 0)):
        (tmp_path / f"{noise}.toml").write_text(TINY.replace("NOISE", noise), encoding="utf-8")
        shown = rearkit("show", f"{noise}.toml", path=[site])
        assert shown.returncode == code_, shown.stderr
        if code_:
            refused = shown
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: linear.toml: [noise] name: noise 'linear' is provided by both ")
    assert "rearkit-taken 1.0" in line
    assert "rearkit 0.1" in line


def test_an_exception_in_a_component_is_told_as_its_packages(
    distribution: Callable[..., Path], rearkit: Command, tmp_path: Path
) -> None:
    code = """
from rearkit import Component, hookimpl, settings

@settings
class Odd:
    \"\"\"Images that fail.\"\"\"

    num_classes = 2

    def class_names(self):
        return None

    def size(self, split):
        return 4

    def shards(self, split):
        return None

    def images(self, split):
        yield {}["no such [key]"]

@hookimpl
def rearkit_components():
    return [Component("dataset", "odd", Odd, lambda settings: settings)]
"""
    site = distribution("rearkit-odd", code, version="0.4")
    recipe = TINY.replace("mnist-5k", "odd").replace("NOISE", "linear")
    (tmp_path / "tiny.toml").write_text(recipe, encoding="utf-8")

    failed = rearkit("data", "tiny.toml", path=[site])
    assert failed.returncode == 6
    (line,) = failed.stderr.splitlines()
    assert line.startswith("error: dataset 'odd' of rearkit-odd 0.4 failed with KeyError: 'no such [key]' (")
    assert "rearkit_odd.py, line 20" in line and line.endswith("with the traceback that --debug shows")

    debugged = rearkit("data", "tiny.toml", "--debug", path=[site])
    assert debugged.returncode == 6
    assert "Traceback" in debugged.stderr
    # Python before 3.11 does not print the notes of an exception.
    assert "raised in dataset 'odd' of rearkit-odd 0.4" in debugged.stderr or sys.version_info < (3, 11)
