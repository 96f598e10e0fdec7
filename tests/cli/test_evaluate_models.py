"""``evaluate`` of an exported model: what is wrong is told before it samples; options reach it or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rearkit.cli.evaluate import TAKEN
from rearkit.cli.main import cli
from rearkit.model import Model
from rearkit.stages import sample_folder
from rearkit.stages.train import load_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.npz"
    np.savez(path, np.zeros((8, 8, 8, 3), np.uint8))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Lets nothing be sampled; lists what was to be."""
    calls: list[tuple[Any, ...]] = []

    def sample_model(*arguments: Any) -> None:
        calls.append(arguments)
        raise InterruptedError

    monkeypatch.setattr(sample_folder, "sample_model", sample_model)
    return calls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--reference": "none.npz"}, "--reference"),
        ({"--feature-weights": "none.pth"}, "none.pth"),
        ({"--feature-weights": "reference.npz"}, "reference.npz"),
    ],
)
def test_what_it_cannot_score_by_is_told_before_it_samples(
    change: dict[str, str], message: str, exported: Path, reference: Path, asked: list[Any], inception: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    good = {"--reference": reference, "--feature-weights": inception}
    options = good | {option: tmp_path / name for option, name in change.items()}
    found = run(exported, *(word for pair in options.items() for word in pair))
    assert not asked
    assert message in str(found.exception)


@pytest.mark.parametrize("trust", [(), ("--trust",)])
def test_the_users_trust_reaches_the_model(
    trust: tuple[str, ...], exported: Path, reference: Path, asked: list[Any], inception: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given: list[bool] = []

    def loading(*arguments: Any, **options: Any) -> Model:
        given.append(options["trust"])
        return load_model(*arguments, **options)

    monkeypatch.setattr("rearkit.stages.train.load_model", loading)
    run(exported, *trust, "--reference", reference, "--feature-weights", inception)
    assert given == [bool(trust)] and len(asked) == 1


def test_every_form_with_a_recipe_takes_the_options_of_recipes() -> None:
    """As all commands with a RECIPE do: no other refuses options by its form."""
    for form, taken in TAKEN.items():
        assert {"overrides", "trust"} <= set(taken) or "recipe" not in taken, form


def test_trust_is_no_mistake_with_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rearkit.pipeline.run", lambda *given, **more: None)
    found = run("smoke", "--trust", "--out", tmp_path / "run")
    assert found.exit_code == 0, found.output


def test_settings_of_the_models_modules_are_refused(exported: Path, reference: Path, asked: list[Any]) -> None:
    found = run(exported, "--reference", reference, "--set", "backbone.num_layers=3")
    assert found.exit_code == 2 and "the model's file says what it is" in found.output
    assert not asked


def test_a_temperature_for_a_folder_is_refused_rather_than_dropped(exported: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(cli, ["sample", str(exported), "--to-folder", str(tmp_path / "s"), "--temperature", "2"])
    assert found.exit_code == 2 and "--set sample.temperature=VALUE" in found.output
