"""What a fit can be asked for: a part of the tokenizer, given weights, averages, varied images, a distance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rearkit.contracts import FittableTokenizer, Tokenizer
from rearkit.errors import DivergedError, RearkitError
from rearkit.evaluation.classifier import Classifier
from rearkit.fitting.fit import TokenizerFit, tells_images
from rearkit.fitting.perceptual import Perceptual, classifier_distance
from rearkit.fitting.varied import varied
from rearkit.model import build_tokenizer
from rearkit.recipe.fit_table import FitTable
from rearkit.recipe.tables import Recipe
from rearkit.stages.evaluate import check_features
from rearkit.stages.tokenizer import check_fit

CLASSIFIER = {"features": "classifier"}
TABLE = FitTable(steps=4, batch=4, warmup_steps=1, lr=1e-2)
Tiny = Callable[..., Recipe]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for _ in itertools.count():
        yield torch.rand(4, 3, 8, 8, generator=generator), torch.zeros(4, dtype=torch.int64)


def fitted(tokenizer: Tokenizer, table: FitTable) -> Tokenizer:
    TokenizerFit(tokenizer, table, 0).run(batches())
    return tokenizer


def test_fitting_the_decoder_alone_keeps_every_token(tiny: Tiny) -> None:
    tokenizer = fitted(build_tokenizer(tiny()), TABLE)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    fitted(tokenizer, attrs.evolve(TABLE, part="decoder"))
    changed = {
        name.split(".")[0] for name, value in tokenizer.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"decoder"}


def test_a_fit_from_given_weights_keeps_their_codebook_until_it_moves(tiny: Tiny) -> None:
    first = fitted(build_tokenizer(tiny()), TABLE)
    second = build_tokenizer(tiny())
    second.load_state_dict(first.state_dict())
    second.train()
    second.fit_loss(next(batches())[0])
    moved = (second.codebook() - first.codebook()).norm() / first.codebook().norm()
    assert 0 < moved < 0.5


def test_the_average_of_the_weights_is_taken_in_the_end(tiny: Tiny) -> None:
    seen: list[list[Tensor]] = []
    tokenizer = build_tokenizer(tiny())
    fit = TokenizerFit(tokenizer, attrs.evolve(TABLE, ema_decay=0.3), 0)
    start = [p.detach().clone() for p in tokenizer.parameters()]

    def watched() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches():
            seen.append([p.detach().clone() for p in tokenizer.parameters()])
            yield batch

    fit.run(watched())
    last = [p.detach().clone() for p in fitted(build_tokenizer(tiny()), TABLE).parameters()]
    states = [*seen[1:], last]
    for index, parameter in enumerate(tokenizer.parameters()):
        expected = start[index]
        for step, state in enumerate(states, 1):
            decay = min(0.3, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * state[index]
        torch.testing.assert_close(parameter.detach(), expected)


def test_a_gradient_that_is_not_finite_moves_nothing(tiny: Tiny, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tiny())
    before = [p.detach().clone() for p in tokenizer.decoder.parameters()]
    next(tokenizer.encoder.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DivergedError, match="a gradient of step 1 was not finite"):
        TokenizerFit(tokenizer, TABLE, 0, tmp_path / "fit.pt").run(batches())
    assert all(torch.equal(a, b) for a, b in zip(before, tokenizer.decoder.parameters(), strict=True))
    assert not (tmp_path / "fit.pt").exists()


def test_images_are_mirrored_and_moved() -> None:
    torch.manual_seed(0)
    images = torch.arange(64 * 3 * 64.0).view(64, 3, 8, 8)
    flipped = varied(images, attrs.evolve(TABLE, flip=True))
    kinds = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert 16 < sum(kinds) < 48
    assert all(torch.equal(a, b.flip(2)) for a, b, same in zip(flipped, images, kinds, strict=True) if not same)
    moved = varied(images, attrs.evolve(TABLE, shift=2))
    # The middle of an image stays within it, wherever it goes.
    for image, old in zip(moved, images, strict=True):
        assert any(torch.equal(image[:, 2:6, 2:6], old[:, y : y + 4, x : x + 4]) for y in range(5) for x in range(5))
    assert torch.equal(varied(images, TABLE), images)


def test_a_classifiers_distance_is_zero_of_equal_images_and_passes_gradients() -> None:
    torch.manual_seed(0)
    distance = classifier_distance(Classifier(3, 4, 8).eval())
    images = torch.rand(2, 3, 16, 16)
    assert distance(images, images).item() == 0
    near, far = (distance(images + d * torch.rand_like(images), images).item() for d in (0.05, 0.5))
    assert 0 < near < far
    rebuilt = torch.rand(2, 3, 16, 16, requires_grad=True)
    Perceptual(distance, 1.0)(rebuilt, images).backward()
    assert rebuilt.grad is not None and rebuilt.grad.abs().sum() > 0


def test_lpips_reads_vgg_from_a_file(tmp_path: Path) -> None:
    lpips = pytest.importorskip("lpips")
    from rearkit.fitting.perceptual import lpips_distance

    torch.manual_seed(0)
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    state = {f"features.{name.split('.', 1)[1]}": value for name, value in theirs.net.state_dict().items()}
    # As torchvision's file has them.
    save_file(state | {"classifier.0.bias": torch.zeros(2)}, tmp_path / "vgg.safetensors")
    a, b = torch.rand(2, 2, 3, 32, 32)
    ours = lpips_distance(str(tmp_path / "vgg.safetensors"), torch.device("cpu"))
    torch.testing.assert_close(ours(a, b), theirs(a, b, normalize=True).mean())


class OnlyTellsTheLoss(FittableTokenizer):
    def fit_loss(self, images_B3RR: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return images_B3RR.mean(), {}


def test_what_a_tokenizer_or_recipe_cannot_give_is_told_before_the_fit(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_fit(**table: object) -> Recipe:
        return tiny(tokenizer={"fit": {"steps": 3, "warmup_steps": 1, **table}})

    assert check_fit(with_fit(adversarial={"layers": 1}, perceptual={})) == []
    (told,) = check_fit(with_fit(adversarial={}))
    assert told == "[tokenizer.fit.adversarial] layers = 3: 8 pixels are too few; 1 at most"
    vgg = {"features": "lpips", "vgg_weights": "vgg.pth"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: name)
        assert (
            "needs images of 16 pixels at least, and the tokenizer's have 8" in check_fit(with_fit(perceptual=vgg))[0]
        )
    small = tiny(tokenizer={"image_size": 2, "fit": {"adversarial": {}, "perceptual": {}}}, evaluate=CLASSIFIER)
    assert [line.partition(" ")[0] for line in check_fit(small)] == [
        "[tokenizer.fit.adversarial]",
        "[tokenizer.fit.perceptual]",
    ]
    assert "needs images of 4 pixels at least, and the tokenizer's have 2" in check_features(small)[0]
    assert check_features(tiny(evaluate=CLASSIFIER)) == []
    assert "needs [tokenizer] weights" in check_fit(with_fit(part="decoder"))[0]
    assert tells_images(build_tokenizer(tiny())) and not tells_images(OnlyTellsTheLoss())
    monkeypatch.setattr("rearkit.stages.tokenizer.build_tokenizer", lambda recipe, load: OnlyTellsTheLoss())
    assert "has only fit_loss; leave these tables out" in check_fit(with_fit(adversarial={}))[0]
    told = check_fit(with_fit(part="decoder"))
    assert "does not tell its decoder apart" in told[1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RearkitError, match=r"pip install 'rearkit\[lpips\]'"):
        check_fit(with_fit(perceptual={"features": "lpips", "vgg_weights": "vgg.pth"}))
