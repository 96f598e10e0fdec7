from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import rearkit
import rearkit.stages.train as stage
from rearkit.cli.main import cli
from rearkit.components.regularizers.codebook_embedding import CodebookEmbedding
from rearkit.contracts import Classes, TrainingStep
from rearkit.errors import RearkitError, RecipeError, WeightsError
from rearkit.model import Model, build
from rearkit.pipeline import run_with_tokenizer
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.tables import Recipe
from rearkit.stages.model_files import tokenizer_file
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.train import export, fitting
from rearkit.system import distributed
from rearkit.weights import write_state_dict

HEADS = "heads.safetensors"
MODEL = "model.safetensors"
WEIGHTS = "tokenizer.safetensors"


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model, and the folder of a run that exported it."""
    folder = tmp_path_factory.mktemp("run")
    model = build(tiny(seed=3))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert export(model, 4, RunFolder(folder)) == (MODEL, HEADS)
    write_state_dict(folder / "tokenizer" / WEIGHTS, model.tokenizer.state_dict())
    return model, folder


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone.eval()(torch.arange(16)[None] % 12, torch.tensor([3]))[0]


def test_an_exported_model_is_loaded_from_its_file_alone(run: tuple[Model, Path]) -> None:
    model, folder = run
    loaded = rearkit.load_model(folder / "train" / MODEL)
    assert loaded.recipe == model.recipe
    assert torch.equal(logits(loaded), logits(model))
    assert torch.equal(loaded.tokenizer.codebook(), model.tokenizer.codebook())
    assert not loaded.backbone.training


def test_away_from_its_run_a_model_needs_the_tokenizer(run: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = run
    moved = tmp_path / "elsewhere" / "moved.safetensors"
    moved.parent.mkdir()
    moved.write_bytes((folder / "train" / MODEL).read_bytes())
    with pytest.raises(WeightsError, match=r"moved\.safetensors: its tokenizer was fitted .* give load_model"):
        rearkit.load_model(moved)
    assert torch.equal(logits(rearkit.load_model(moved, model.tokenizer)), logits(model))


def test_weights_that_were_fitted_further_do_not_stand_for_the_fitted_ones(
    tiny: Callable[..., Recipe], run: tuple[Model, Path], tmp_path: Path
) -> None:
    unfitted = str(run[1] / "tokenizer" / WEIGHTS)
    plain = tiny(tokenizer={"weights": unfitted})
    fitted = tiny(tokenizer={"weights": unfitted, "fit": {"steps": 1, "warmup_steps": 0}})
    assert run_with_tokenizer(plain, tmp_path / "run") is None
    with pytest.raises(RearkitError, match="reconstruct: needs stage 'tokenizer', which has not run to its end"):
        run_with_tokenizer(fitted, tmp_path / "run")
    model = tmp_path / "model" / MODEL
    model.parent.mkdir()
    model.write_bytes((run[1] / "train" / MODEL).read_bytes())
    assert tokenizer_file(model, plain) is None
    with pytest.raises(WeightsError, match="its tokenizer was fitted in a run"):
        tokenizer_file(model, fitted)


def other_tokenizer(model: Model) -> dict[str, torch.Tensor]:
    return {name: value + 1 for name, value in model.tokenizer.state_dict().items()}


def test_a_model_takes_no_other_tokenizer_than_its_own(run: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = run[0], RunFolder(tmp_path)
    write_state_dict(folder.tokenizer, model.tokenizer.state_dict())
    export(model, 4, folder)
    assert tokenizer_file(folder.model, model.recipe) == folder.tokenizer
    mine, beside = folder.tokenizer.read_bytes(), folder.model.parent / WEIGHTS
    write_state_dict(folder.tokenizer, other_tokenizer(model))
    with pytest.raises(WeightsError, match=r"not the tokenizer that .*model\.safetensors was trained with; run"):
        rearkit.load_model(folder.model)
    assert torch.equal(logits(rearkit.load_model(folder.model, model.tokenizer)), logits(model))
    beside.write_bytes(mine)
    assert tokenizer_file(folder.model, model.recipe) == beside
    assert torch.equal(rearkit.load_model(folder.model).tokenizer.codebook(), model.tokenizer.codebook())


def test_a_model_elsewhere_in_a_run_takes_the_tokenizer_beside_it(run: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = run
    copied = RunFolder(tmp_path)
    # Of an earlier version, without the tokenizer's SHA-256.
    place = tmp_path / "exported"
    place.mkdir()
    (place / MODEL).write_bytes((folder / "train" / MODEL).read_bytes())
    for path in (copied.tokenizer, place / WEIGHTS):
        write_state_dict(path, model.tokenizer.state_dict())
    assert tokenizer_file(place / MODEL, model.recipe) == place / WEIGHTS


def test_a_model_that_was_moved_aside_takes_its_own_tokenizer(run: tuple[Model, Path], tmp_path: Path) -> None:
    model, folder = run[0], RunFolder(tmp_path)
    write_state_dict(folder.tokenizer, model.tokenizer.state_dict())
    export(model, 4, folder)
    folder.previous("train").parent.mkdir()
    folder.model.parent.rename(folder.previous("train"))
    aside = folder.previous("train") / MODEL
    write_state_dict(folder.previous("tokenizer") / WEIGHTS, other_tokenizer(model))
    assert tokenizer_file(aside, model.recipe) == folder.tokenizer


def test_the_recipe_in_an_exported_model_is_a_recipe(run: tuple[Model, Path]) -> None:
    model, folder = run
    assert load_recipe(folder / "train" / MODEL) == model.recipe
    changed = load_recipe(folder / "train" / MODEL, ["train.steps=9"])
    assert changed.train.steps == 9
    result = CliRunner().invoke(cli, ["show", str(folder / "train" / MODEL)])
    assert result.exit_code == 0, result.output
    assert "seed = 3" in result.output and "backbone parameters" in result.output


@pytest.mark.parametrize("content", ["none", "other", "damaged", "absent"])
def test_a_file_without_a_recipe_is_told(content: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if content in ("none", "other"):
        save_file({"x": torch.zeros(1)}, path, {"rearkit": "[]"} if content == "other" else None)
    elif content == "damaged":
        path.write_bytes(b"rubbish" * 9)
    with pytest.raises(RecipeError, match=r"weights\.safetensors: (has no recipe inside|not a readable|no such file)"):
        load_recipe(path)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine answers that has one GPU, of 80 GiB."""
    monkeypatch.setattr(stage, "resolve_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(distributed, "local_device", lambda device: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 << 30))


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_a_micro_batch_is_found_though_the_source_is_gone(
    tiny: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = {"name": "folder", "train": str(tmp_path / "train"), "held_out": str(tmp_path / "held-out")}
    assert fitting(tiny(data={"source": gone}), Classes(10)).train.micro_batch == 8
    assert "micro_batch = 8, by the estimate of `plan` for 80 GiB; [train]" in capsys.readouterr().out
    # Of a model that is not trained, there is nothing to say.
    assert fitting(tiny(train={"steps": 0}), Classes(10)).train.micro_batch is None
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_what_cannot_be_planned_is_trained_with_a_ranks_share(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = CodebookEmbedding.forward

    def peeking(self: CodebookEmbedding, step: TrainingStep) -> Any:
        assert len(step.tokens_BN[~step.replaced_BN])
        return forward(self, step)

    monkeypatch.setattr(CodebookEmbedding, "forward", peeking)
    assert fitting(tiny(), Classes(10)).train.micro_batch == 8
    said = " ".join(capsys.readouterr().out.split())
    assert "micro_batch = 8, all that is a rank's, since its memory has no estimate (tiny: cannot be planned" in said
