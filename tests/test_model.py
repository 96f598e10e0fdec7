from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANSettings
from rearkit.contracts import Backbone, NoiseSchedule, Regularizer, RegularizerContext, Tokenizer, TokenSpace
from rearkit.errors import PluginError, RearkitError, RecipeError, WeightsError
from rearkit.model import Model, build, build_tokenizer, check_weights
from rearkit.recipe.tables import Recipe
from rearkit.registry import plugins
from rearkit.registry.component import Component
from rearkit.stages.inputs import check_inputs
from rearkit.weights import write_state_dict


def weights(module: object) -> dict[str, Tensor]:
    return dict(module.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_recipe_becomes_modules_of_its_sizes(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny())
    assert isinstance(model, Model)
    assert isinstance(model.backbone, Backbone)
    assert isinstance(model.tokenizer, Tokenizer)
    assert isinstance(model.noise, NoiseSchedule)
    assert model.space == TokenSpace(16, 12, 10, grid=(4, 4))
    assert (model.backbone.hidden_size, model.backbone.num_layers) == (16, 2)
    assert model.objective.layers == (0, 1)


def test_the_tokenizer_is_frozen_and_the_backbone_is_not(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny())
    assert not model.tokenizer.training
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())


def test_weights_are_a_function_of_the_seed(tiny: Callable[..., Recipe]) -> None:
    torch.manual_seed(1)
    first = build(tiny())
    torch.manual_seed(2)
    second, other = build(tiny()), build(tiny(seed=1))
    for name in ("tokenizer", "backbone", "objective"):
        assert same(weights(getattr(first, name)), weights(getattr(second, name)))
        assert not same(weights(getattr(first, name)), weights(getattr(other, name)))


def test_a_given_tokenizer_changes_nothing_else(tiny: Callable[..., Recipe]) -> None:
    own = build_tokenizer(tiny(seed=5))
    torch.rand(3)
    model = build(tiny(), own)
    assert model.tokenizer is own
    assert same(weights(model.backbone), weights(build(tiny()).backbone))


def test_a_recipe_without_noise_and_regularizers_is_a_plain_ar_model(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny(noise=None, regularizers=[]))
    assert isinstance(model.noise, NoiseSchedule)
    assert torch.equal(model.noise.rates(0.0, 5, torch.Generator()), torch.zeros(5))
    assert model.objective.layers == ()
    assert not list(model.objective.parameters())


def test_two_regularizers_of_a_name_are_both_kept(tiny: Callable[..., Recipe]) -> None:
    tables = [{"name": "codebook-embedding", "projection_dim": width} for width in (3, 5)]
    model = build(tiny(regularizers=tables))
    assert list(model.objective.regularizers) == ["codebook-embedding", "codebook-embedding-1"]
    widths = [regularizer.encode_head[0].out_features for regularizer in model.objective.regularizers.values()]
    assert widths == [3, 5]


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        (
            {"regularizers": [{"name": "codebook-embedding", "decode_layer": 7}]},
            "tiny: [regularizers] codebook-embedding: layer 7 is not in the backbone, whose blocks are 0 to 1",
        ),
    ],
)
def test_components_that_do_not_fit_each_other_are_a_recipe_error(
    tables: dict[str, Any], problem: str, tiny: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError) as caught:
        build(tiny(**tables))
    assert caught.value.problems == [problem]


def test_the_tokenizers_weights_are_those_that_the_recipe_names(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    other = weights(build_tokenizer(tiny(seed=9)))
    write_state_dict(tmp_path / "tokenizer.safetensors", other)
    recipe = tiny(tokenizer={"weights": str(tmp_path / "tokenizer.safetensors")})
    assert same(weights(build(recipe).tokenizer), other)
    assert not same(weights(build_tokenizer(recipe, load=False)), other)
    recipe = tiny(tokenizer={"weights": str(tmp_path / "tokenizer.safetensors"), "codebook_size": 9})
    with pytest.raises(WeightsError, match=r"these weights need .*codebook_size = 12"):
        build(recipe)


def test_published_weights_bring_backbone_and_heads(
    tiny: Callable[..., Recipe], reference: Callable[[str], Any]
) -> None:
    case = reference("tiny")
    sizes = case.sizes
    recipe = tiny(
        tokenizer={"codebook_size": sizes["codebook_size"], "embedding_dim": sizes["embedding_dim"]},
        backbone={
            "hidden_size": sizes["hidden_size"],
            "num_layers": sizes["num_layers"],
            "num_heads": sizes["num_heads"],
            "weights": str(case.weights),
        },
        regularizers=[{"name": "codebook-embedding", "projection_dim": sizes["projection_dim"], "decode_layer": 2}],
    )
    model = build(recipe)
    published = load_file(case.weights)
    assert torch.equal(weights(model.backbone)["lm_head.weight"], published["lm_head.weight"])
    heads = weights(model.objective)
    for side in ("encode", "decode"):
        ours = heads[f"regularizers.codebook-embedding.{side}_head.0.weight"]
        assert torch.equal(ours, published[f"{side}_align_mlp.0.weight"])
    plain = build(tiny(**{**vars_of(recipe), "regularizers": []}))
    assert same(weights(plain.backbone), weights(model.backbone))  # heads that nobody asks for are passed over


def test_a_regularizer_that_copies_the_backbone_gets_the_weights_that_the_recipe_names(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Copy(Regularizer):
        def __init__(self, settings: object, context: RegularizerContext) -> None:
            super().__init__()
            self.teacher = copy.deepcopy(context.backbone)

        def forward(self, step: Any) -> dict[str, torch.Tensor]:
            return {}

    trained = weights(build(tiny(train={"seed": 5})).backbone)
    write_state_dict(tmp_path / "backbone.safetensors", trained)
    recipe = tiny(backbone={"weights": str(tmp_path / "backbone.safetensors")})
    component = Component("regularizer", "copy", type(recipe.regularizers[0].settings), Copy)
    table = attrs.evolve(recipe.regularizers[0], name="copy")
    find = plugins.find
    monkeypatch.setattr(plugins, "find", lambda kind, name: component if name == "copy" else find(kind, name))
    model = build(attrs.evolve(recipe, regularizers=(table,)))
    copied: Any = model.objective.regularizers["copy"]
    assert same(weights(copied.teacher), trained) and same(weights(model.backbone), trained)


def vars_of(recipe: Recipe) -> dict[str, Any]:
    from rearkit.recipe.loading import recipe_to_dict

    return recipe_to_dict(recipe)


def test_a_component_that_is_no_module_of_its_contract_is_refused_with_the_line_to_write(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shaped(torch.nn.Module):
        """Has the shape of a tokenizer, but not its type, as components had before rearkit 0.2."""

    recipe = tiny()
    component = Component("tokenizer", "shaped", type(recipe.tokenizer.settings), lambda settings: Shaped())
    monkeypatch.setattr(plugins, "find", lambda kind, name: component)
    with pytest.raises(PluginError, match=r"Shaped is no Tokenizer of rearkit.contracts; write: class Shaped\(Tokeniz"):
        build_tokenizer(recipe)


def test_named_weights_are_compared_before_anything_runs(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    model = build(tiny())
    paths = {kind: tmp_path / f"{kind}.pt" for kind in ("tokenizer", "backbone")}
    torch.save({"model": weights(model.tokenizer), "ema": {"a": torch.zeros(1)}}, paths["tokenizer"])
    torch.save(weights(model.backbone), paths["backbone"])
    right = {kind: {"weights": str(path)} for kind, path in paths.items()}
    assert check_weights(tiny(**right)) == []
    assert check_weights(tiny()) == []
    wrong = {
        "tokenizer": right["tokenizer"] | {"weights_key": "ema"},
        "backbone": right["backbone"] | {"num_layers": 1},
    }
    first, second = check_weights(tiny(**wrong))
    assert first.startswith("[tokenizer] weights: ") and "1 surplus (a)" in first
    assert second.startswith("[backbone] weights: ") and "these weights need" in second and "num_layers = 2" in second
    with pytest.raises(RearkitError, match=r"\[tokenizer\] weights: .*\n\[backbone\] weights: "):
        check_inputs(tiny(**wrong))


@pytest.mark.parametrize(
    "source",
    [
        {"name": "folder", "train": "nowhere", "held_out": "nowhere"},
        {"name": "shards", "train": "nowhere", "num_classes": 10},
    ],
)
def test_backbone_weights_are_compared_though_the_images_are_not_there_yet(
    source: dict[str, Any], tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    built = build(tiny())
    write_state_dict(tmp_path / "backbone.safetensors", built.backbone.state_dict())
    weights = {"weights": str(tmp_path / "backbone.safetensors")}
    assert check_weights(tiny(data={"source": source}, backbone=weights)) == []
    (problem,) = check_weights(tiny(data={"source": source}, backbone=weights | {"num_layers": 3}))
    assert "[backbone] weights" in problem and "do not fit" in problem and "num_layers = 2" in problem


def test_backbone_weights_are_compared_with_room_for_the_tokens_of_the_noise(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(noise={"name": "linear"})
    path = tmp_path / "backbone.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(type(build(recipe).noise), "extra_tokens", 2, raising=False)
        write_state_dict(path, build(recipe).backbone.state_dict())
        assert check_weights(tiny(noise={"name": "linear"}, backbone={"weights": str(path)})) == []
    (problem,) = check_weights(tiny(noise={"name": "linear"}, backbone={"weights": str(path)}))
    assert "[backbone] weights" in problem and "do not fit" in problem


def test_a_file_that_is_not_inceptions_weights_is_refused_before_anything_runs(
    tiny: Callable[..., Recipe], inception: Path, tmp_path: Path
) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    fit = {"fit": {"steps": 1, "warmup_steps": 0}}
    for name, words in (("torchvision.pth", "not torch-fidelity's Inception, without Conv2d_1a"), ("page.pth", "")):
        recipe = tiny(tokenizer=fit, evaluate={"feature_weights": str(tmp_path / name)})
        with pytest.raises(RearkitError, match=rf"^\[evaluate\] feature_weights: .*{name}.*{words}") as error:
            check_inputs(recipe)
        assert "\n" not in str(error.value)
    check_inputs(tiny(tokenizer=fit, evaluate={"feature_weights": str(inception)}))
    unread = {"features": "classifier", "feature_weights": str(tmp_path / "page.pth")}
    check_inputs(tiny(tokenizer=fit, evaluate=unread))


def test_weights_of_ema_are_built_by_choice(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    own = weights(build_tokenizer(tiny()))
    ema = {key: value + 1 for key, value in own.items()}
    torch.save({"model": own, "ema": ema, "epoch": 3}, tmp_path / "trainer.pt")
    table = {"weights": str(tmp_path / "trainer.pt")}
    assert same(weights(build_tokenizer(tiny(tokenizer=table))), own)
    assert same(weights(build_tokenizer(tiny(tokenizer=table | {"weights_key": "ema"}))), ema)


def test_inputs_that_are_folders_are_called_so(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match=r"\[backbone\] weights: .*: a folder, not a file"):
        check_inputs(tiny(backbone={"weights": str(tmp_path)}))
    with pytest.raises(RearkitError, match=r"\[backbone\] weights_key chooses within weights, and there are none"):
        check_inputs(tiny(backbone={"weights_key": "ema"}))


def test_guidance_away_from_what_is_not_trained_is_refused(tiny: Callable[..., Recipe]) -> None:
    tables = {"tokenizer": {"fit": {"steps": 1, "warmup_steps": 0}}, "sample": {"num_images": 4, "guidance_scale": 2.0}}
    check_inputs(tiny(**tables))
    with pytest.raises(RearkitError, match=r"^\[sample\] guidance_scale leads away from predictions without a class"):
        check_inputs(tiny(train={"label_dropout": 0.0}, **tables))


def test_a_tokenizer_that_reads_its_values_is_looked_at_before_anything_runs(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = MaskGITVQGAN.__init__

    def reading(self: MaskGITVQGAN, settings: MaskGITVQGANSettings) -> None:
        built(self, settings)
        self.codebook().sum().item()  # which a tensor without content has not

    monkeypatch.setattr(MaskGITVQGAN, "__init__", reading)
    fit = {"steps": 1, "warmup_steps": 0, "adversarial": {"layers": 1}}
    with pytest.raises(
        RearkitError, match=r"^\[tokenizer.fit.adversarial\] layers = 2: 8 pixels are too few; 1 at most$"
    ):
        check_inputs(tiny(tokenizer={"fit": fit | {"adversarial": {"layers": 2}}}, evaluate={"features": "classifier"}))
    check_inputs(tiny(tokenizer={"fit": fit}, evaluate={"features": "classifier"}))
