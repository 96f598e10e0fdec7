from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from rearkit.cli.main import cli
from rearkit.components.regularizers.codebook_embedding import CodebookEmbedding
from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGAN
from rearkit.contracts import RegularizerContext, num_parameters
from rearkit.errors import RearkitError, RecipeError
from rearkit.model import build, outline
from rearkit.planning import measure
from rearkit.planning.machine import Machine
from rearkit.planning.measure import StepMemory, parameter_counts, sampling_memory, step_flops
from rearkit.planning.micro_batch import by_stage, with_micro_batch
from rearkit.planning.plan import make_plan, micro_batches
from rearkit.planning.plan_tables import plan_rows
from rearkit.planning.step_memory import GIB
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.tables import Recipe
from rearkit.sampling import pixel_decoder
from rearkit.sampling.pixel_decoder import PixelDecoder

MACHINE = Machine(ranks=2, memory=80 * GIB, tflops=100.0, utilisation=0.5)
RECIPES = Path(__file__).parents[2] / "recipes"


def test_a_plan_counts_what_the_built_recipe_has(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(train={"keep_checkpoints": 3, "ema_decay": 0.9})
    plan, model = make_plan(recipe, MACHINE), build(recipe)
    backbone, heads = num_parameters(model.backbone), num_parameters(model.objective)
    assert (plan.backbone_parameters, plan.head_parameters) == (backbone, heads)
    assert (plan.micro_batch, plan.accumulation) == (4, 1)
    assert plan.samples == recipe.train.steps * recipe.train.global_batch
    assert plan.tokens == plan.samples * model.space.num_tokens
    assert plan.epochs == plan.samples / 4500
    assert plan.token_shards == (4500 + 500) * (2 * 16 + 4)
    assert plan.checkpoint == 16 * (backbone + heads) and plan.checkpoints == 4
    assert plan.export == 4 * backbone
    assert plan.seconds == pytest.approx(plan.steps * plan.flops / (2 * 100e12 * 0.5))
    assert list(plan.memory) == [1, 2, 4]


def test_the_time_of_small_steps_is_said_to_lack_launches(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny()
    plan = make_plan(recipe, MACHINE)
    for seconds, cuda, told in ((0.019, True, True), (0.021, True, False), (0.019, False, False)):
        rows = plan_rows(recipe, attrs.evolve(MACHINE, cuda=cuda), attrs.evolve(plan, seconds=seconds * plan.steps))
        assert ("launches of kernels are not counted" in rows["training time"]) is told


def test_operations_are_six_for_each_weight_and_row_and_attention_besides(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(regularizers=None)
    B, T, D, V, layers = 3, 18, 16, 12, 2
    with torch.device("meta"):
        backbone: Any = build(recipe).backbone
    linear = sum(m.weight.numel() for m in backbone.blocks.modules() if isinstance(m, nn.Linear))
    head = (2 * D * D + V * D) * (T - 1)
    attention = layers * 2 * T * T * D
    assert step_flops(recipe, B) == 6 * B * (linear * T + head + attention)


def test_the_cache_grows_with_the_sampling_batch_and_guidance_doubles_it(tiny: Callable[..., Recipe]) -> None:
    def at(**sample: Any) -> int:
        return sampling_memory(tiny(sample={"num_images": 4, **sample}), cuda=True).cache

    keys_and_values = 2 * 2 * 18 * 16 * 4  # two blocks, 18 places of 16 floats
    assert at(batch=8) >= 8 * keys_and_values
    assert at(batch=16) - at(batch=8) >= 8 * keys_and_values
    assert at(batch=8, guidance_scale=2.0) == at(batch=16)


@pytest.mark.parametrize(
    ("batch", "cuda", "images"),
    [pytest.param(4, True, 4, id="all"), (16, True, 8), pytest.param(4, False, 1, id="cpu")],
)
def test_the_plan_decodes_as_many_images_at_once_as_the_sampler(
    batch: int, cuda: bool, images: int, tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(sample={"batch": batch})
    side = recipe.tokenizer.settings.image_size
    monkeypatch.setattr(pixel_decoder, "PIXELS", 8 * side**2)
    decoder = PixelDecoder(build(recipe).tokenizer, torch.device("cpu"), exact=True)
    assert decoder.at_once == 1 and pixel_decoder.images_at_once(side, cuda=True) == 8
    sizes, decode = [], MaskGITVQGAN.decode

    def noted(self: MaskGITVQGAN, tokens_BN: Tensor) -> Tensor:
        sizes.append(len(tokens_BN))
        return decode(self, tokens_BN)

    monkeypatch.setattr(MaskGITVQGAN, "decode", noted)
    sampling_memory(recipe, cuda)
    assert sizes == [images]


def test_a_gpu_decodes_the_pixels_of_eight_images_of_256_at_once() -> None:
    sizes = (256, 512, 1024, (64, 32))
    assert [pixel_decoder.images_at_once(size, cuda=True) for size in sizes] == [8, 2, 1, 256]
    assert [pixel_decoder.images_at_once(size, cuda=False) for size in sizes] == [1] * 4


def test_weights_that_are_not_there_are_not_needed(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(backbone={"weights": "absent.safetensors"}, tokenizer={"weights": "absent.safetensors"})
    assert parameter_counts(recipe) == parameter_counts(tiny())


def test_a_checkpoint_is_computed_again_with_the_same_attention(tiny: Callable[..., Recipe]) -> None:
    plain, saved = (make_plan(tiny(train={"activation_checkpointing": on}), MACHINE) for on in (False, True))
    assert saved.memory[4][1].activations < plain.memory[4][1].activations


def test_a_micro_batch_that_is_left_out_is_the_largest_that_fits(tiny: Callable[..., Recipe]) -> None:
    recipe = tiny(train={"global_batch": 32})
    known: dict[int, StepMemory] = {}  # found once, since it takes seconds
    one, all_of_it = (by_stage(recipe, MACHINE, size, parameter_counts(recipe), known)[1] for size in (1, 16))
    fixed, each = one.total, all_of_it.activations / 16
    machine = attrs.evolve(MACHINE, memory=(fixed + 6 * each) / 0.9)
    assert with_micro_batch(recipe, machine, known=known).train.micro_batch == 4
    assert with_micro_batch(recipe, attrs.evolve(machine, cuda=False)).train.micro_batch is None
    assert with_micro_batch(tiny(train={"global_batch": 32, "micro_batch": 8}), machine).train.micro_batch == 8
    with pytest.raises(RecipeError, match=r"micro_batch: one sample takes .* set activation_checkpointing = true"):
        with_micro_batch(recipe, attrs.evolve(machine, memory=fixed / 2), known=known)
    small = attrs.evolve(machine, memory=fixed / 2)
    assert with_micro_batch(recipe, small, anyway=True, known=known).train.micro_batch == 1


def test_a_batch_that_does_not_divide_is_refused_with_what_does(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeError, match="8 samples don't divide over 3 ranks; use 2 ranks, or global_batch = 6"):
        make_plan(tiny(), attrs.evolve(MACHINE, ranks=3))
    with pytest.raises(RecipeError, match="no training to plan"):
        make_plan(tiny(train={"steps": 0}), MACHINE)


class Peeking(nn.Module):
    """A backbone that decides by what its tensors hold."""

    prefix_length, hidden_size, num_layers = 1, 4, 1

    def forward(self, tokens_BN: Tensor, classes_B: Tensor, layers: Any = ()) -> Any:
        if tokens_BN.sum().item() > 3:
            raise AssertionError
        return tokens_BN[..., None].float(), {}


def test_a_component_that_needs_content_is_an_error_that_says_so(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        measure, "build", lambda recipe, tokenizer: attrs.evolve(build(recipe, tokenizer), backbone=Peeking())
    )
    with pytest.raises(RearkitError, match="reads the values of tensors, but planning runs on meta tensors"):
        step_flops(tiny(), 2)


def test_a_component_that_takes_the_codebook_into_numpy_cannot_be_planned_either(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a meta tensor that is a TypeError, and it comes while the model is built."""
    made = CodebookEmbedding.__init__

    def counting(self: CodebookEmbedding, settings: Any, context: RegularizerContext) -> None:
        assert len(context.codebook_VZ.numpy())
        made(self, settings, context)

    monkeypatch.setattr(CodebookEmbedding, "__init__", counting)
    recipe = tiny(regularizers=[{"name": "codebook-embedding"}])
    with pytest.raises(RearkitError, match="cannot be planned: a component reads the values of tensors"):
        step_flops(recipe, 2)
    assert outline(recipe) is None
    assert build(recipe) is not None


@pytest.mark.parametrize(
    ("micro", "accumulation", "expected"), [(6, 1, [1, 2, 6]), (4, 2, [1, 2, 4, 8]), (3, 1, [1, 3]), (1, 1, [1])]
)
def test_micro_batches_divide_a_ranks_share(micro: int, accumulation: int, expected: list[int]) -> None:
    assert micro_batches(micro, accumulation) == expected


def test_the_command_prints_figures_and_refuses_what_it_does_not_know() -> None:
    recipe = str(RECIPES / "smoke.toml")
    done = CliRunner().invoke(cli, ["plan", recipe, "--gpus", "2", "--gpu-memory", "1"], obj=[])
    assert done.exit_code == 0, done.output
    for words in ("backbone parameters", "ZeRO 3", "key-value cache", "16 = 2 ranks × 1 × 8 accumulated"):
        assert words in done.output
    for flag in ("--gpu=2", "--gpus=0", "--utilisation=0", "--gpu-memory=-1"):
        assert CliRunner().invoke(cli, ["plan", recipe, flag], obj=[]).exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rear_s_maskgit", "rear_b_maskgit", "rear_l_maskgit", "ar_s_maskgit"])
def test_imagenet_recipes_are_planned_with_nothing_downloaded(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / f"{name}.toml")
    monkeypatch.chdir(tmp_path)
    plan = make_plan(recipe, Machine(8, 80 * GIB, 312.0, 0.4))
    assert plan.epochs == pytest.approx(400, abs=1)
    assert all(memory.total > 0 for by_stage in plan.memory.values() for memory in by_stage.values())
