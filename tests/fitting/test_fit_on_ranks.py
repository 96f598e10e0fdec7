"""A fit whose batches two ranks share; also run as a script by each of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch

from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANSettings
from rearkit.evaluation.classifier import Classifier
from rearkit.fitting.fit import TokenizerFit
from rearkit.fitting.perceptual import Perceptual, classifier_distance
from rearkit.recipe.fit_table import AdversarialTable, FitTable
from rearkit.system import distributed
from rearkit.training.logs import TrainLog, read_log

STEPS = 30
TINY = MaskGITVQGANSettings(
    image_size=16, hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, codebook_size=32,
    embedding_dim=8,
)  # fmt: skip


# All that there is, so that each is seen to be divided rightly.
EVERYTHING = FitTable(
    steps=50, batch=7, warmup_steps=2, checkpoint_every=10, flip=True, shift=2, ema_decay=0.9,
    adversarial=AdversarialTable(start=3, channels=8, layers=2, r1=0.1, lecam=0.1),
)  # fmt: skip
PLAIN = FitTable(steps=STEPS, batch=7, warmup_steps=2, checkpoint_every=10)
LONG = attrs.evolve(PLAIN, steps=50)
SHORT = attrs.evolve(PLAIN, steps=3)


def in_float64() -> None:
    """Compute in float64 from here on.

    A discriminator amplifies each rounding, differently on each kind of processor. In float32 one weight that is moved
    by one in the last place, in one process, moves losses by 1e-4 within few steps.
    """
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.float)  # put back at the end
    in_float64()
    yield
    torch.set_default_dtype(torch.float32)


def fitted(folder: Path, table: FitTable = PLAIN, steps: int | None = None) -> tuple[list[float], torch.Tensor]:
    """The losses of a fit, and its codebook; a fit of fewer steps is cut off after them."""
    torch.manual_seed(0)
    tokenizer = MaskGITVQGAN(attrs.evolve(TINY, entropy=0.1, entropy_temperature=1.0) if table.adversarial else TINY)
    generator = torch.Generator().manual_seed(0)
    # Seven, so that the ranks' shares differ.
    images = torch.rand(table.steps, 7, 3, 16, 16, generator=generator)
    folder.mkdir(exist_ok=True)
    fit = TokenizerFit(tokenizer, table, 0, folder / "fit.pt", nearness(table))
    distributed.barrier()
    pairs = iter([(batch, torch.zeros(7)) for batch in images[fit.step : steps]])
    log = TrainLog(folder, fit.step) if distributed.rank() == 0 else None
    try:
        fit.run(pairs if distributed.rank() == 0 else iter(()), log)
    except (StopIteration, RuntimeError):
        assert steps is not None
    return [line["loss"] for line in read_log(folder)], tokenizer.codebook().detach()


def nearness(table: FitTable) -> Perceptual | None:
    """A distance in an untrained classifier's features, for a fit with everything."""
    if table.adversarial is None:
        return None
    torch.manual_seed(1)
    return Perceptual(classifier_distance(Classifier(2, 4, 4).eval()), 1.0)


def on_two_ranks(folder: Path, which: str = "PLAIN") -> list[tuple[list[float], torch.Tensor]]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        str(folder),
        which,
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_fit_as_one(tmp_path: Path) -> None:
    losses, codebook = fitted(tmp_path / "one", PLAIN)
    (first, first_codebook), (_, second_codebook) = on_two_ranks(tmp_path, "PLAIN")
    # The same on both, to the bit, or they would drift apart.
    assert torch.equal(first_codebook, second_codebook)
    assert first == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(first_codebook, codebook, atol=1e-3, rtol=1e-3)
    assert len(losses) == STEPS and losses[-1] < losses[0]


def test_two_ranks_fit_with_everything_as_one(exact: None, tmp_path: Path) -> None:
    losses, codebook = fitted(tmp_path / "one", EVERYTHING)
    (first, first_codebook), (_, second_codebook) = on_two_ranks(tmp_path, "EVERYTHING")
    assert torch.equal(first_codebook, second_codebook)
    assert first == pytest.approx(losses, abs=1e-9)
    torch.testing.assert_close(first_codebook, codebook, atol=1e-9, rtol=1e-9)
    assert len(losses) == EVERYTHING.steps and losses[-1] < losses[0]


def test_the_codes_in_use_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    fitted(tmp_path / "one", SHORT)
    on_two_ranks(tmp_path, "SHORT")
    whole, shared = ([line["codes_used"] for line in read_log(tmp_path / name)] for name in ("one", "shared"))
    assert shared == pytest.approx(whole)


@pytest.mark.slow
def test_a_long_fit_of_two_ranks_has_the_losses_of_one(tmp_path: Path) -> None:
    losses, _ = fitted(tmp_path / "one", LONG)
    (first, first_codebook), (_, second_codebook) = on_two_ranks(tmp_path, "LONG")
    assert torch.equal(first_codebook, second_codebook)
    assert len(losses) == LONG.steps
    assert first == pytest.approx(losses, abs=1e-4)


@pytest.mark.slow
def test_a_fit_of_two_ranks_goes_on_from_a_checkpoint_of_one(tmp_path: Path) -> None:
    losses, _ = fitted(tmp_path / "whole")
    fitted(tmp_path / "shared", steps=12)
    assert (tmp_path / "shared" / "fit.pt").is_file()
    (found, _), _ = on_two_ranks(tmp_path)
    assert len(found) == STEPS
    assert found == pytest.approx(losses, abs=1e-4)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    distributed.start(torch.device("cpu"))
    if sys.argv[2] == "EVERYTHING":
        in_float64()
    torch.save(fitted(place / "shared", globals()[sys.argv[2]]), place / f"{distributed.rank()}.pt")
    distributed.leave()
