"""Plugins with published models as their users have them: pip-installed, digits run, and what is missing told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]


@attrs.frozen
class Published:
    """A plugin, its components, a recipe's weights and where they come from, and sizes that make its digits quick."""

    name: str
    components: tuple[str, str]
    weights: str
    source: str
    smaller: Mapping[str, int]


MODELS = (
    Published(
        "alitok",
        ("tokenizer alitok", "backbone alitok-ar"),
        "weights/AliTok.pth",
        "https://github.com/ali-vilab/alitok",
        {
            "tokenizer.encoder_layers": 1,
            "tokenizer.decoder_layers": 1,
            "tokenizer.continuous_steps": 1,
            "backbone.hidden_size": 16,
            "backbone.num_layers": 2,
        },
    ),
    Published(
        "llamagen",
        ("tokenizer llamagen-vq", "backbone llamagen-gpt"),
        "weights/vq_ds16_c2i.pt",
        "https://github.com/FoundationVision/LlamaGen",
        {"tokenizer.hidden_channels": 8, "backbone.hidden_size": 16, "backbone.num_layers": 2},
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_installed_run_and_missed(
    model: Published, install: Callable[[Path], Path], rearkit: Command, brief: list[str], tmp_path: Path
) -> None:
    project = ROOT / "plugins" / f"rearkit-{model.name}"
    site = install(project)
    listed = rearkit("plugins", path=[site])
    assert listed.returncode == 0, listed.stderr
    for component in model.components:
        assert f"{component}  rearkit-{model.name} 0.1.0" in listed.stdout

    smaller = [word for key, value in model.smaller.items() for word in ("--set", f"{key}={value}")]
    digits = str(project / "mnist.toml")
    done = rearkit("run", digits, "--out", str(tmp_path / "run"), *brief, *smaller, path=[site])
    assert done.returncode == 0, done.stdout + done.stderr
    log = "".join(path.read_text() for path in (tmp_path / "run" / "train").glob("*.jsonl"))
    assert "regularizer/codebook-embedding/encode" in log
    assert "regularizer/codebook-embedding/decode" in log

    recipe = ROOT / "recipes" / f"rear_b_{model.name}.toml"
    missing = rearkit("run", str(recipe), "--out", str(tmp_path / "b"), path=[site])
    assert missing.returncode != 0
    assert f"missing: {model.weights}" in missing.stderr
    assert model.source in missing.stderr
    assert len(missing.stderr.splitlines()) <= 20

    refused = rearkit("run", str(recipe), "--out", str(tmp_path / "b"))
    assert refused.returncode == 2
    assert f"unknown {model.components[0].split()[0]} {model.components[0].split()[1]!r}" in refused.stderr
    assert refused.stderr.splitlines()[-1].endswith(f"run: pip install ./plugins/rearkit-{model.name}")
