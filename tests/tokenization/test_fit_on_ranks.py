"""A fit whose batches two ranks share; also run as a script by each of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANSettings
from rearkit.recipe.tables import FitTable
from rearkit.system import distributed
from rearkit.tokenization.fit import TokenizerFit

STEPS = 30
TINY = MaskGITVQGANSettings(
    image_size=16, hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, codebook_size=32,
    embedding_dim=8,
)  # fmt: skip


def fitted(checkpoint: Path | None = None, steps: int = STEPS) -> tuple[list[float], torch.Tensor]:
    """The losses of a fit, and its codebook."""
    torch.manual_seed(0)
    tokenizer = MaskGITVQGAN(TINY)
    generator = torch.Generator().manual_seed(0)
    # Seven, so that the ranks' shares differ.
    images = torch.rand(STEPS, 7, 3, 16, 16, generator=generator)
    fit = TokenizerFit(tokenizer, FitTable(steps=STEPS, batch=7, warmup_steps=2, checkpoint_every=10), 0, checkpoint)
    distributed.barrier()
    pairs = iter([(batch, torch.zeros(7)) for batch in images[fit.step : steps]])
    try:
        fit.run(pairs if distributed.rank() == 0 else iter(()))
    except (StopIteration, RuntimeError):
        assert steps < STEPS
    return [line["loss"] for line in fit.history], tokenizer.codebook().detach()


def on_two_ranks(folder: Path) -> list[tuple[list[float], torch.Tensor]]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        str(folder),
    ]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_fit_as_one(tmp_path: Path) -> None:
    losses, codebook = fitted()
    (first, first_codebook), (second, second_codebook) = on_two_ranks(tmp_path)
    # The same on both, to the bit, or they would drift apart.
    assert first == second and torch.equal(first_codebook, second_codebook)
    assert first == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(first_codebook, codebook, atol=1e-3, rtol=1e-3)
    assert len(losses) == STEPS and losses[-1] < losses[0]


@pytest.mark.slow
def test_a_fit_of_two_ranks_goes_on_from_a_checkpoint_of_one(tmp_path: Path) -> None:
    losses, _ = fitted()
    fitted(tmp_path / "checkpoint", steps=12)
    assert (tmp_path / "checkpoint").is_file()
    (found, _), _ = on_two_ranks(tmp_path)
    assert len(found) == STEPS
    assert found == pytest.approx(losses, abs=1e-4)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    distributed.start(torch.device("cpu"))
    torch.save(fitted(place / "checkpoint"), place / f"{distributed.rank()}.pt")
    distributed.leave()
