"""Fits of the plugins' tokenizers on two ranks, which must end with the same weights; also run as a script by each."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rearkit.contracts import FittableTokenizer
from rearkit.fitting.fit import TokenizerFit
from rearkit.recipe.fit_table import FitTable
from rearkit.recipe.recipe_files import read_toml
from rearkit.system import distributed

PLUGINS = Path(__file__).parents[2] / "plugins"
NAMES = ("alitok", "llamagen", "titok")


def tokenizer_of(name: str) -> FittableTokenizer:
    """A plugin's tokenizer, at the sizes of its digits."""
    table = read_toml(PLUGINS / f"rearkit-{name}" / "mnist.toml")["tokenizer"]
    components = importlib.import_module(f"rearkit_{name}").rearkit_components()
    (component,) = (one for one in components if one.kind == "tokenizer")
    sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in table.items() if key not in ("name", "fit")}
    torch.manual_seed(0)
    tokenizer = component.build(component.settings(**(sizes | ({"continuous_steps": 1} if name == "alitok" else {}))))
    assert isinstance(tokenizer, FittableTokenizer)
    return tokenizer


def fitted(name: str) -> dict[str, Tensor]:
    """All parameters and buffers after a few steps; the ranks' shares of a batch differ."""
    tokenizer = tokenizer_of(name)
    images = torch.rand(3, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    TokenizerFit(tokenizer, FitTable(steps=3, batch=5, warmup_steps=1), 0).run((x, torch.zeros(5)) for x in images)
    return {**dict(tokenizer.named_parameters()), **dict(tokenizer.named_buffers())}


@pytest.mark.slow
def test_all_ranks_have_the_same_tokenizer(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    packages = os.pathsep.join(str(PLUGINS / f"rearkit-{name}") for name in NAMES)
    paths = os.pathsep.join(filter(None, (packages, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *launcher, __file__, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == set(NAMES)
    unlike = [f"{name} {key}" for name in NAMES for key in first[name] if not first[name][key].equal(second[name][key])]
    assert not unlike


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    torch.save({name: fitted(name) for name in NAMES}, Path(sys.argv[1]) / f"{distributed.rank()}.pt")
    distributed.leave()
