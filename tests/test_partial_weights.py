"""Weights of another number of classes, codes or positions: what fits is taken, the rest is initialised and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rearkit.components.backbones.dit_ar import DiTAR, DiTARSettings
from rearkit.contracts import Backbone, TokenSpace
from rearkit.errors import WeightsError
from rearkit.layers.position_tables import resized_table, square_grid
from rearkit.model import build, check_weights
from rearkit.partial_weights import fitting_part, load_part
from rearkit.recipe.tables import Recipe
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.train import export, load_model

SETTINGS = DiTARSettings(hidden_size=16, num_layers=2, num_heads=2)
SPACE = TokenSpace(num_tokens=16, codebook_size=12, num_classes=5)


def backbone(space: TokenSpace = SPACE, seed: int = 0, settings: DiTARSettings = SETTINGS) -> DiTAR:
    torch.manual_seed(seed)
    return DiTAR(settings, space)


@pytest.fixture
def file(tmp_path: Path) -> str:
    module = backbone()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    save_file(module.state_dict(), tmp_path / "old.safetensors")
    return str(tmp_path / "old.safetensors")


def loaded(file: str, space: TokenSpace) -> tuple[DiTAR, DiTAR, dict[str, torch.Tensor]]:
    """The backbone with what it took, the same as initialised, and the file's tensors."""
    from safetensors.torch import load_file

    module = backbone(space, seed=1)
    load_part(module, file)
    return module, backbone(space, seed=1), load_file(file)


def test_at_the_same_sizes_all_is_taken(file: str) -> None:
    module, _, old = loaded(file, SPACE)
    assert all(torch.equal(value, old[name]) for name, value in module.state_dict().items())


def test_other_classes_keep_codes_mask_and_no_label(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, fresh, old = loaded(file, TokenSpace(16, 12, 3))
    rows, before = module.embeddings.weight, old["embeddings.weight"]
    assert torch.equal(rows[:13], before[:13]) and torch.equal(rows[-1], before[-1])
    assert torch.equal(rows[13:16], fresh.embeddings.weight[13:16])
    assert torch.equal(module.blocks[1].mlp.fc1.weight, old["blocks.1.mlp.fc1.weight"])
    said = capsys.readouterr().out
    assert "initialised: the rows of 3 classes, where the file has 5" in said.replace("\n", " ")


def test_other_codes_keep_classes_and_get_a_head_of_their_own(file: str) -> None:
    module, fresh, old = loaded(file, TokenSpace(16, 20, 5))
    assert torch.equal(module.embeddings.weight[21:], old["embeddings.weight"][13:])
    assert torch.equal(module.embeddings.weight[:20], fresh.embeddings.weight[:20])
    assert torch.equal(module.lm_head.weight, fresh.lm_head.weight)


def test_more_positions_are_interpolated_and_said(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, old = loaded(file, TokenSpace(64, 12, 5))
    expected = torch.nn.functional.interpolate(
        old["pos_embed"][:, 2:].transpose(1, 2).unflatten(2, (4, 4)), size=(8, 8), mode="bicubic"
    )
    torch.testing.assert_close(module.pos_embed[:, 2:].transpose(1, 2), expected.flatten(2))
    assert torch.equal(module.pos_embed[:, :2], old["pos_embed"][:, :2])
    assert "interpolated: pos_embed, from 4 × 4 to 8 × 8 tokens" in capsys.readouterr().out.replace("\n", " ")
    # All of it is there, so the model can go on from what it knew.
    assert module(torch.zeros(1, 64, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))[0].isfinite().all()


def test_a_grid_that_is_no_square_starts_anew(file: str) -> None:
    module, fresh, _ = loaded(file, TokenSpace(18, 12, 5))
    assert torch.equal(module.pos_embed, fresh.pos_embed)


def test_a_flat_table_stays_flat() -> None:
    table = torch.full((1, 18, 3), 2.5)
    torch.testing.assert_close(resized_table(table, (4, 4), (6, 6), 2), torch.full((1, 38, 3), 2.5))
    assert (square_grid(16), square_grid(17), square_grid(-1)) == ((4, 4), None, None)


# As many tokens as before are another grid, too.
@pytest.mark.parametrize("grid", [(8, 4), (4, 8), (3, 5), (2, 8), (16, 1)])
def test_another_grid_than_a_square_is_interpolated_by_rows_and_columns(file: str, grid: tuple[int, int]) -> None:
    rows, columns = grid
    module, _, old = loaded(file, TokenSpace(rows * columns, 12, 5, grid=grid))
    for name in ("pos_embed", "target_aware_pos_embed", "timesteps_embeddings"):
        before, after = old[name], getattr(module, name)
        image = before[0, 2:].reshape(4, 4, 16).permute(2, 0, 1)
        expected = torch.nn.functional.interpolate(image[None], size=grid, mode="bicubic", align_corners=False)[0]
        torch.testing.assert_close(after[0, 2:].reshape(rows, columns, 16), expected.permute(1, 2, 0))
        assert torch.equal(after[:, :2], before[:, :2])
    assert torch.equal(module.lm_head.weight, old["lm_head.weight"])


def test_rows_are_interpolated_as_rows() -> None:
    """A table that grows from row to row, and is the same in each column, stays so."""
    rows = torch.arange(4.0).repeat_interleave(4)[None, :, None]
    tall = resized_table(torch.cat([torch.zeros(1, 2, 1), rows], 1), (4, 4), (8, 2), 2)
    by_row = tall[0, 2:, 0].reshape(8, 2)
    assert torch.equal(by_row[:, 0], by_row[:, 1]) and (by_row[1:, 0] > by_row[:-1, 0]).all()


def test_weights_of_another_width_are_refused(file: str) -> None:
    with pytest.raises(WeightsError, match=r"less than half of the DiTAR .* not weights of this backbone"):
        fitting_part(backbone(settings=DiTARSettings(hidden_size=32, num_layers=2, num_heads=2)), file)


def test_numbers_that_are_none_are_refused(file: str, tmp_path: Path) -> None:
    state = backbone().state_dict()
    state["blocks.0.mlp.fc1.weight"].fill_(float("nan"))
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match="NaN or infinite"):
        fitting_part(backbone(TokenSpace(16, 12, 3)), str(tmp_path / "bad.safetensors"))


def test_a_recipe_says_so(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    model = build(tiny())
    state = model.backbone.state_dict()
    path = str(tmp_path / "old.safetensors")
    # As if of two classes more.
    rows = state["embeddings.weight"]
    save_file(state | {"embeddings.weight": torch.cat([rows[:-1], rows[:2], rows[-1:]])}, path)
    strict = tiny(backbone={"weights": path})
    assert "weights do not fit" in check_weights(strict)[0]
    partial = tiny(backbone={"weights": path, "weights_fit": "partial"})
    assert check_weights(partial) == []
    taken = build(partial).backbone
    assert torch.equal(taken.lm_head.weight, model.backbone.lm_head.weight)


def test_a_model_is_loaded_at_another_size(
    tiny: Callable[..., Recipe],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build(tiny())
    folder = RunFolder(tmp_path)
    folder.model.parent.mkdir(parents=True)
    export(model, 4, folder)
    tokenizer = folder.tokenizer
    tokenizer.parent.mkdir()
    save_file(model.tokenizer.state_dict(), tokenizer)
    small, large = load_model(folder.model), load_model(folder.model, image_size=16)
    assert (small.space.num_tokens, large.space.num_tokens) == (16, 64)
    assert torch.equal(large.backbone.embeddings.weight, small.backbone.embeddings.weight)
    assert "16 pixels: interpolated: pos_embed, from 4 × 4 to 8 × 8 tokens" in capsys.readouterr().out
    with pytest.raises(WeightsError, match=r"image_size \(7\) must be a multiple of 2"):
        load_model(folder.model, image_size=7)
    # A backbone that cannot change its positions would have some that nobody has trained.
    monkeypatch.setattr(DiTAR, "adapted", Backbone.adapted)
    with pytest.raises(WeightsError, match=r'cannot take its pos_embed.* weights_fit = "partial"'):
        load_model(folder.model, image_size=16)
