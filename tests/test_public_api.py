"""Every public name is there, and stays what it is after the modules behind it are imported."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import rearkit, importlib
first = {name: getattr(rearkit, name) for name in rearkit.__all__}
assert sorted(rearkit._HOME) == sorted(rearkit.__all__)
for home in set(rearkit._HOME.values()):
    importlib.import_module(f"rearkit.{home}")
for name, value in first.items():
    assert getattr(rearkit, name) is value, f"a module hides rearkit.{name}"
"""


def test_no_module_hides_a_public_name() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_rearkit_does_not_import_torch() -> None:
    code = "import rearkit, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
