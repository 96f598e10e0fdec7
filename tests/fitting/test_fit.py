from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rearkit.contracts import Tokenizer
from rearkit.data.image_sets import ImageBatches, ImageSet
from rearkit.data.pixels import psnr, to_float
from rearkit.errors import DataError, DivergedError, RearkitError
from rearkit.fitting.adversary import Adversary
from rearkit.fitting.fit import TokenizerFit, learning_rate
from rearkit.model import build_tokenizer
from rearkit.recipe.fit_table import AdversarialTable, FitTable
from rearkit.recipe.tables import Recipe
from rearkit.reports.charts import FIT_WORDS
from rearkit.stages.tokenizer import fit_tokenizer
from rearkit.training.logs import TrainLog, read_log

TABLE = FitTable(steps=12, batch=4, checkpoint_every=5, warmup_steps=2, lr=1e-2)
WITH_ALL = attrs.evolve(
    TABLE, flip=True, shift=1, ema_decay=0.9, precision="bf16",
    adversarial=AdversarialTable(start=2, channels=8, layers=1, r1=0.1, lecam=0.1),
)  # fmt: skip


@given(st.integers(51, 200), st.integers(0, 50), st.floats(1e-5, 1))
def test_the_learning_rate_follows_its_closed_form_and_ends_near_a_twentieth(
    steps: int, warmup: int, peak: float
) -> None:
    fit = FitTable(steps=steps, warmup_steps=warmup, lr=peak)
    for step in range(steps):
        cosine = 0.05 + 0.95 * math.cos(math.pi * step / steps / 2) ** 2
        assert learning_rate(fit, step) == pytest.approx(peak * cosine * min(1, (step + 1) / max(warmup, 1)))
        assert 0 < learning_rate(fit, step) <= peak * (1 + 1e-9)
    assert learning_rate(FitTable(steps=steps, warmup_steps=0, lr=peak), steps) == pytest.approx(peak / 20)


def images(count: int = 24) -> ImageSet:
    """Images of four flat patches of random colour."""
    patches = torch.randint(256, (count, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(patches.repeat_interleave(4, 2).repeat_interleave(4, 3), torch.zeros(count, dtype=torch.int64))


def batches(start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    held = images()
    for step in itertools.count(start):
        index = torch.randint(24, (4,), generator=torch.Generator().manual_seed(step))
        yield to_float(held.images[index]), held.labels[index]


def fresh(tiny: Callable[..., Recipe]) -> Tokenizer:
    return build_tokenizer(tiny())


def everything(tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Parameters, and all buffers, also those that a state dict leaves out."""
    module = tokenizer
    return {name: value.clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("table", [TABLE, WITH_ALL], ids=["plain", "with-all"])
def test_a_fit_that_was_cut_off_ends_as_the_uninterrupted_one(
    table: FitTable, tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = fresh(tiny)
    TokenizerFit(whole, table, seed=3).run(batches(), TrainLog(tmp_path / "whole", 0))

    def dying() -> Iterator[tuple[Tensor, Tensor]]:
        yield from itertools.islice(batches(), 8)
        raise RuntimeError("killed")

    path = tmp_path / "fit.pt"
    with pytest.raises(RuntimeError, match="killed"):
        TokenizerFit(fresh(tiny), table, 3, path).run(dying(), TrainLog(tmp_path / "cut", 0))
    torch.rand(5)
    resumed = fresh(tiny)
    fit = TokenizerFit(resumed, table, 3, path)
    assert fit.step == 5  # the last checkpoint
    fit.run(batches(5), TrainLog(tmp_path / "cut", fit.step))
    assert same(everything(resumed), everything(whole))
    lines = read_log(tmp_path / "cut")
    assert lines == read_log(tmp_path / "whole")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {name for line in lines for name in line} - {"step"} <= FIT_WORDS.keys()
    fit.finish()
    assert not path.exists()


def test_a_fit_goes_on_at_its_place_among_the_images(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    class Images(ImageBatches):
        """Batches of no split."""

        def __init__(self) -> None:
            self._batches = batches()
            self.place = (3, 4)

    stopping = attrs.evolve(TABLE, steps=5)
    TokenizerFit(fresh(tiny), stopping, 0, tmp_path / "fit.pt").run(Images())
    assert TokenizerFit(fresh(tiny), TABLE, 0, tmp_path / "fit.pt").place == (3, 4)


def test_a_fit_is_a_function_of_the_seed(tiny: Callable[..., Recipe]) -> None:
    results = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        tokenizer = fresh(tiny)
        torch.manual_seed(noise)
        TokenizerFit(tokenizer, TABLE, seed).run(batches())
        results.append(everything(tokenizer))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense", b"\x80\x02."])
def test_a_damaged_checkpoint_starts_the_fit_anew(
    content: bytes, tiny: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fit.pt").write_bytes(content)
    fit = TokenizerFit(fresh(tiny), TABLE, 0, tmp_path / "fit.pt")
    assert fit.step == 0
    assert "fit.pt is damaged" in capsys.readouterr().out


def test_a_fit_learns_to_reconstruct_and_leaves_the_tokenizer_frozen(tiny: Callable[..., Recipe]) -> None:
    table = {"steps": 150, "batch": 8, "lr": 1e-2, "warmup_steps": 5}
    recipe = tiny(tokenizer={"hidden_channels": 8, "codebook_size": 64, "fit": table})
    held = images()

    def quality(tokenizer: Tokenizer) -> float:
        with torch.no_grad():
            decoded = tokenizer.decode(tokenizer.encode(to_float(held.images)))
        return psnr(decoded, to_float(held.images)).mean().item()

    before = quality(build_tokenizer(recipe))
    fitted = fit_tokenizer(recipe, held)
    assert quality(fitted) > before + 4
    assert not fitted.training
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


def test_images_in_memory_are_fitted_with_the_perceptual_distance(
    tiny: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    step = TokenizerFit._step
    monkeypatch.setattr(TokenizerFit, "_step", lambda fit, batch: seen.append(step(fit, batch)) or seen[-1])
    table = {"steps": 2, "batch": 4, "warmup_steps": 1, "perceptual": {"weight": 5.0, "steps": 2}}
    fit_tokenizer(tiny(tokenizer={"fit": table}), ImageSet(images().images, torch.arange(24) % 3))
    assert len(seen) == 2 and all("perceptual" in values for values in seen)
    with pytest.raises(RearkitError, match=r'part = "decoder" needs \[tokenizer\] weights'):
        fit_tokenizer(tiny(tokenizer={"fit": table | {"part": "decoder"}}), images())


def test_a_recipe_without_a_fit_is_refused(tiny: Callable[..., Recipe]) -> None:
    with pytest.raises(RearkitError, match=r"no \[tokenizer\.fit\] in the recipe"):
        fit_tokenizer(tiny(), images())


def test_images_of_another_size_are_refused(tiny: Callable[..., Recipe]) -> None:
    large = ImageSet(torch.zeros(2, 3, 12, 12, dtype=torch.uint8), torch.arange(2))
    with pytest.raises(DataError, match="takes images of 8 pixels; found 12 × 12: resize or crop"):
        fit_tokenizer(tiny(tokenizer={"fit": {"steps": 2, "batch": 4, "warmup_steps": 1}}), large)


def test_a_fit_that_diverges_stops_and_writes_no_checkpoint(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    tokenizer = fresh(tiny)
    with torch.no_grad():
        next(tokenizer.parameters()).fill_(float("nan"))
    table = FitTable(steps=2, batch=4, warmup_steps=1, checkpoint_every=1)
    with pytest.raises(DivergedError, match=r"\[tokenizer.fit\]: the loss of step 1 was nan; fit at a lower lr"):
        TokenizerFit(tokenizer, table, 0, tmp_path / "fit.pt").run(batches())
    assert not (tmp_path / "fit.pt").exists()


def test_a_discriminator_whose_gradient_is_never_finite_stops_the_fit(
    tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adversary, "_lecam", lambda self, real, rebuilt, share: real.mean() * math.nan)
    table = attrs.evolve(WITH_ALL, adversarial=attrs.evolve(WITH_ALL.adversarial, max_skipped_steps=3))
    with pytest.raises(DivergedError, match=r"step 6: the discriminator's .*; 4 of its steps skipped"):
        TokenizerFit(fresh(tiny), table, 0).run(batches(), TrainLog(tmp_path, 0))
    # It takes part from step 2 on.
    assert [line["discriminator_skipped"] for line in read_log(tmp_path)[2:]] == [1, 2, 3]
