"""A weights file is data: nothing that its recipe names outside the file is run, opened or fetched without trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import rearkit
from rearkit.cli.main import cli
from rearkit.errors import RearkitError, RecipeError, WeightsError
from rearkit.model import build
from rearkit.recipe.exported import LEFT_OUT
from rearkit.recipe.loading import load_recipe, recipe_to_dict
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.train import export

Changed = Callable[..., Path]


@pytest.fixture
def sent(tiny: Callable[..., Recipe], tmp_path: Path) -> Changed:
    """Write a model's file as somebody else could, with changes of its recipe."""
    model = build(tiny())
    export(model, 4, RunFolder(tmp_path / "own"))

    def write(**changes: dict[str, Any]) -> Path:
        content = recipe_to_dict(model.recipe)
        for table, keys in changes.items():
            content[table] = {**content.get(table, {}), **keys} if isinstance(keys, dict) else keys
        about = {"recipe": content, "steps": 4, "classes": {"number": 10, "names": None}}
        path = tmp_path / "sent" / "model.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(dict(model.backbone.state_dict()), path, {"rearkit": json.dumps(about)})
        return path

    return write


def command(tmp_path: Path) -> dict[str, Any]:
    return {"source": {"name": "shards", "train": f"pipe:touch {tmp_path}/started", "num_classes": 10}}


@pytest.mark.parametrize(
    "arguments", [["show"], ["run"], ["data"], ["sample"], ["sample", "--to-folder", "out"], ["plan"]]
)
def test_no_command_in_a_file_is_run(
    arguments: list[str], sent: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = sent(data=command(tmp_path), train={"deepspeed": {"flops_profiler": {"output_file": "x"}}})
    result = CliRunner().invoke(cli, [arguments[0], str(path), *arguments[1:]])
    assert not (tmp_path / "started").exists()
    assert not (tmp_path / "runs").exists()
    assert len([line for line in result.output.splitlines() if "left out of its recipe" in line]) <= 1
    if arguments[0] in ("run", "data") or arguments == ["sample"]:
        assert isinstance(result.exception, RecipeError)
        assert "[data.source]" in str(result.exception) and "--trust" in str(result.exception)
    if arguments[0] in ("show", "plan"):
        assert result.exit_code == 0, result.output


def test_what_is_left_out_is_said_in_one_line(sent: Changed, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = sent(
        data=command(tmp_path),
        requires=["evil @ https://evil.example"],
        needs=[{"path": "/x", "what": "w", "source": "s", "size": "1"}],
        train={"trackers": {"wandb": True, "wandb_entity": "evil"}, "deepspeed": {"steps_per_print": 1}},
        tokens={"pretokenized": "/etc"},
        evaluate={"reference": "/etc/passwd"},
        tokenizer={"weights": "hf://evil/evil/x.safetensors"},
        regularizers=[{"name": "not-installed"}],
        extends="/etc/passwd",
    )
    recipe = load_recipe(path)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    for key in ("data.source", "requires", "needs", "train.trackers", "train.deepspeed", "tokens.pretokenized"):
        assert key in said
    for key in ("evaluate.reference", "tokenizer.weights", "regularizers", "extends", "--trust"):
        assert key in said
    assert recipe.data.source.name == LEFT_OUT and recipe.data.source.settings.num_classes == 10
    assert (recipe.needs, recipe.requires, recipe.train.deepspeed) == ((), (), {})
    assert not recipe.train.trackers.wandb and recipe.tokens.pretokenized is None
    assert recipe.tokenizer.weights is None and recipe.regularizers == ()


def test_what_a_recipe_without_it_has_is_not_said_to_be_left_out(sent: Changed, capsys: pytest.CaptureFixture) -> None:
    """Whatever the defaults are, and in a file of a version that had fewer of them."""
    load_recipe(sent())
    load_recipe(sent(train={"trackers": {"wandb": False}}))
    assert "left out" not in capsys.readouterr().out
    load_recipe(sent(train={"trackers": {"wandb": False, "wandb_offline": True}}))
    assert "left out of its recipe, since others may have written it: train.trackers;" in capsys.readouterr().out


def test_trust_takes_all(sent: Changed, tmp_path: Path) -> None:
    path = sent(data=command(tmp_path), requires=["other"], train={"deepspeed": {"comms_logger": {}}})
    recipe = load_recipe(path, trust=True)
    assert recipe.data.source.name == "shards" and recipe.requires == ("other",)
    assert recipe.train.deepspeed == {"comms_logger": {}}
    assert "pipe:touch" in CliRunner().invoke(cli, ["show", str(path), "--trust"]).output


def test_a_file_that_extends_a_model_takes_no_more_of_it(sent: Changed, tmp_path: Path) -> None:
    top = tmp_path / "top.toml"
    top.write_text(f'extends = "{sent(data=command(tmp_path))}"\nname = "mine"\n')
    assert load_recipe(top).data.source.name == LEFT_OUT
    assert load_recipe(top, trust=True).data.source.name == "shards"


def test_another_source_may_be_given(sent: Changed, tmp_path: Path) -> None:
    recipe = load_recipe(sent(data=command(tmp_path)), ['data.source={name="mnist-5k"}'])
    assert recipe.data.source.name == "mnist-5k"


def test_a_model_is_loaded_with_what_is_left(sent: Changed, tmp_path: Path, tiny: Callable[..., Recipe]) -> None:
    path = sent(data=command(tmp_path), requires=["other"])
    model = rearkit.load_model(path, build(tiny()).tokenizer)
    assert model.num_classes == 10
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("classes", [{"names": None}, {"number": 10, "names": 3}, {"number": "x", "names": None}, 3])
def test_damaged_classes_are_one_line(classes: Any, sent: Changed, tiny: Callable[..., Recipe]) -> None:
    path = sent()
    model = build(tiny())
    about = {"recipe": recipe_to_dict(model.recipe), "classes": classes}
    save_file(dict(model.backbone.state_dict()), path, {"rearkit": json.dumps(about)})
    with pytest.raises(WeightsError, match=r"model\.safetensors: what it says of its classes is damaged"):
        rearkit.load_model(path, model.tokenizer)


def test_a_deeply_nested_recipe_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"rearkit": '{"recipe": ' + "[" * 100_000})
    with pytest.raises(RecipeError, match="has no recipe inside"):
        load_recipe(path)


# What is no recipe, and no model


@pytest.mark.parametrize("given", ["smoke", {"name": "smoke"}])
def test_a_name_or_a_mapping_is_no_recipe_yet(given: Any) -> None:
    for call in (rearkit.run, rearkit.build, rearkit.load_images):
        with pytest.raises(
            RearkitError, match=r"expected a recipe, as rearkit\.load_recipe\(…\) returns it; got .*smoke"
        ):
            call(given)


def test_a_model_that_is_not_there_is_not_called_a_recipe() -> None:
    with pytest.raises(WeightsError, match=r"nope: no such model; give its file, such as RUN/train/model\.safetensors"):
        rearkit.load_model("nope")
