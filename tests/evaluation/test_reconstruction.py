from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rearkit.evaluation.batch_rows import looking
from rearkit.evaluation.classifier import Classifier, save_classifier
from rearkit.evaluation.feature_spaces import classifier_space
from rearkit.evaluation.features import extract
from rearkit.evaluation.image_streams import MemoryImages
from rearkit.evaluation.reconstruction import Reconstruction, decoded_rows, measure, reconstruction_lines, ssim

CPU = torch.device("cpu")


class Quarters(nn.Module):
    """A tokenizer of 4 grey levels, a token a quarter of the image."""

    image_size, num_tokens, codebook_size, embedding_dim = 16, 4, 4, 1

    def __init__(self, levels: tuple[int, ...] = (0, 85, 170, 255)) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor(levels) / 255)

    def encode(self, images: Tensor) -> Tensor:
        means = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 8).flatten(1)
        return (means[..., None] - torch.tensor([0, 85, 170, 255]) / 255).abs().argmin(-1)

    def decode(self, tokens_BN: Tensor) -> Tensor:
        grey = self.levels[tokens_BN].reshape(-1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
        return grey.expand(-1, 3, -1, -1)


def drawn(count: int, codes: int = 4) -> Tensor:
    """Images that `Quarters` can express, with all codes equally often."""
    tokens = torch.arange(4 * count).reshape(count, 4) % codes
    order = torch.randperm(4 * count, generator=torch.Generator().manual_seed(0))
    return (Quarters().decode(tokens.flatten()[order].reshape(count, 4)) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_classifier(Classifier(3, 8, 6), path)
    return path


def measured(tokenizer: Quarters, images: Tensor, seen: Path) -> Reconstruction:
    source, space = MemoryImages(images), classifier_space(seen, "test")
    with looking(space, CPU) as look:
        rows = decoded_rows(tokenizer.requires_grad_(False), source, look, 7)  # type: ignore[arg-type]
        return measure(tokenizer, rows, extract(source, space, 7, CPU), CPU, "held-out")  # type: ignore[arg-type]


def test_images_that_come_back_as_they_were_have_no_distortion(seen: Path) -> None:
    found = measured(Quarters(), drawn(24), seen)
    assert found.rfid == pytest.approx(0, abs=1e-6)
    assert found.psnr == pytest.approx(100)  # the error is taken as 1e-10 at least
    assert found.ssim == pytest.approx(1, abs=1e-6)
    assert found.codebook_use == 1 and found.perplexity == pytest.approx(4)
    assert found.bits_per_pixel == 4 * 2 / 256 and found.num_images == 24
    assert "SSIM 1.000 of 24 held-out images" in reconstruction_lines(found)[0]


def test_an_error_of_known_size_has_its_psnr(seen: Path) -> None:
    found = measured(Quarters((17, 102, 187, 238)), drawn(24), seen)
    assert found.psnr == pytest.approx(20 * math.log10(255 / 17), abs=1e-3)
    assert 0 < found.ssim < 1 and found.rfid > 0


def test_codes_that_do_not_occur_count(seen: Path) -> None:
    found = measured(Quarters(), drawn(24, codes=2), seen)
    assert found.codebook_use == 0.5 and found.perplexity == pytest.approx(2)


def test_ssim_of_flat_images_is_its_formula_for_means() -> None:
    first, second = (torch.full((2, 3, 16, 16), value, dtype=torch.uint8) for value in (100, 50))
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 50 + c1) / (100**2 + 50**2 + c1)
    assert ssim(first, second).tolist() == pytest.approx([expected] * 2, abs=1e-4)
    assert ssim(second, second).tolist() == pytest.approx([1, 1])
    noise = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert ssim(noise, noise).tolist() == pytest.approx([1, 1])  # images smaller than the window
