from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import get_total_norm

from rearkit.components.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANSettings
from rearkit.contracts import FittableTokenizer
from rearkit.errors import WeightsError
from rearkit.registry import plugins
from rearkit.weights import load_weights

AGREE = {"rtol": 0, "atol": 1e-4}


def reference_settings(case: Any) -> MaskGITVQGANSettings:
    return MaskGITVQGANSettings(
        image_size=case.sizes["resolution"],
        hidden_channels=case.sizes["hidden_channels"],
        channel_mult=tuple(case.sizes["channel_mult"]),
        num_res_blocks=case.sizes["num_res_blocks"],
        codebook_size=case.sizes["codebook_size"],
        embedding_dim=case.sizes["embedding_dim"],
    )


@pytest.fixture(scope="module")
def case(reference: Callable[[str], Any]) -> Any:
    return reference("tiny_maskgit_vqgan")


@pytest.fixture(scope="module")
def tokenizer(case: Any) -> MaskGITVQGAN:
    module = MaskGITVQGAN(reference_settings(case))
    load_weights(module, case.weights, plugins.find("tokenizer", "maskgit-vqgan"))
    return module.eval()


@torch.no_grad()
def test_features_agree_with_the_published_code(case: Any, tokenizer: MaskGITVQGAN) -> None:
    torch.testing.assert_close(tokenizer.features(case["images"]), case["features"], **AGREE)


@torch.no_grad()
def test_tokens_are_exactly_those_of_the_published_code(case: Any, tokenizer: MaskGITVQGAN) -> None:
    assert torch.equal(tokenizer.encode(case["images"]), case["tokens"])
    assert len(case["tokens"].unique()) > 1  # or equality shows little


@torch.no_grad()
def test_codebook_rows_are_the_published_embeddings_of_the_tokens(case: Any, tokenizer: MaskGITVQGAN) -> None:
    torch.testing.assert_close(tokenizer.codebook()[case["tokens"]], case["token_embeddings"], **AGREE)


@torch.no_grad()
def test_reconstruction_agrees_with_the_published_code(case: Any, tokenizer: MaskGITVQGAN) -> None:
    decoded = tokenizer.decode(case["tokens"])
    torch.testing.assert_close(decoded, case["reconstruction"], **AGREE)
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@torch.no_grad()
def test_an_image_is_tokenized_alike_in_any_batch(case: Any, tokenizer: MaskGITVQGAN) -> None:
    for image, tokens in zip(case["images"], case["tokens"], strict=True):
        assert torch.equal(tokenizer.encode(image[None])[0], tokens)


def test_weights_of_another_size_are_refused_by_name(case: Any) -> None:
    module = MaskGITVQGAN(attrs.evolve(reference_settings(case), codebook_size=9))
    with pytest.raises(
        WeightsError, match=r"1 of another shape \(quantize\.embedding\.weight \(32, 8\) where .* \(9, 8\)\)"
    ):
        load_weights(module, case.weights)


@given(
    levels=st.integers(1, 3),
    grid=st.integers(1, 3),
    mults=st.lists(st.integers(1, 2), min_size=3, max_size=3),
    codes=st.integers(2, 9),
    width=st.integers(1, 5),
    batch=st.integers(1, 3),
)
@torch.no_grad()
def test_shapes_and_ranges_are_the_contracts_at_any_size(
    levels: int, grid: int, mults: list[int], codes: int, width: int, batch: int
) -> None:
    side = grid * 2 ** (levels - 1)
    module = MaskGITVQGAN(
        MaskGITVQGANSettings(
            image_size=side,
            hidden_channels=4,
            channel_mult=tuple(mults[:levels]),
            num_res_blocks=1,
            norm_groups=2,
            codebook_size=codes,
            embedding_dim=width,
        )
    ).eval()
    assert isinstance(module, FittableTokenizer)
    assert module.num_tokens == grid**2
    assert module.codebook().shape == (codes, width)
    tokens = module.encode(torch.rand(batch, 3, side, side))
    assert tokens.shape == (batch, grid**2)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < codes
    decoded = module.decode(tokens)
    assert decoded.shape == (batch, 3, side, side)
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_tokens_run_row_by_row() -> None:
    """One level and a decoder of 3×3 convolutions only: a code changes the image around its own place alone."""
    torch.manual_seed(0)
    settings = MaskGITVQGANSettings(
        image_size=40, hidden_channels=2, channel_mult=(1,), num_res_blocks=1, norm_groups=2
    )
    module = MaskGITVQGAN(settings).eval()
    torch.nn.init.normal_(module.quantize.embedding.weight)
    for parameter in module.decoder.parameters():
        parameter.requires_grad_(False)
    features = torch.randn(1, module.num_tokens, 256, requires_grad=True)
    image = module.decoder.conv_in(module._tokens_to_grid(features))
    image[0, 0, 3, 7].backward()
    reached = features.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert reached == [row * 40 + column for row in (2, 3, 4) for column in (6, 7, 8)]


def test_a_fit_moves_the_codebook_towards_the_features_and_the_loss_falls() -> None:
    torch.manual_seed(0)
    settings = MaskGITVQGANSettings(
        image_size=8, hidden_channels=8, channel_mult=(1, 1), norm_groups=2, codebook_size=16, embedding_dim=4
    )
    module = MaskGITVQGAN(settings).train()
    images = torch.rand(8, 3, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss, parts = module.fit_loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert set(parts) == {"reconstruction", "commitment", "codes_used"}
    torch.testing.assert_close(loss, parts["reconstruction"] + settings.commitment * parts["commitment"])
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert module.quantize.embedding.weight.grad is None  # it follows by averages, not by gradients


@pytest.mark.parametrize("black", [1, 4, 8])
def test_black_images_do_not_drown_the_gradient_of_a_batch_and_are_seen_as_they_are_encoded(black: int) -> None:
    """Zeros stay zeros without biases, and each of eleven norms would multiply their gradient by 1000."""
    torch.manual_seed(0)
    module = MaskGITVQGAN(
        MaskGITVQGANSettings(image_size=16, hidden_channels=8, channel_mult=(1, 2), norm_groups=4, codebook_size=32)
    ).train()
    images = torch.rand(8, 3, 16, 16)
    images[:black] = 0
    module.fit_pass(images).loss.backward()
    assert get_total_norm([p.grad for p in module.parameters() if p.grad is not None]) < 100
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            module.fit_pass(images).rebuilt_B3RR.clamp(0, 1), module.decode(module.encode(images))
        )


def test_gradients_pass_the_quantizer_to_the_encoder() -> None:
    torch.manual_seed(0)
    settings = MaskGITVQGANSettings(
        image_size=4,
        hidden_channels=2,
        channel_mult=(1, 1),
        norm_groups=2,
        codebook_size=4,
        embedding_dim=2,
        commitment=0,
    )
    module = MaskGITVQGAN(settings).train()
    loss, _ = module.fit_loss(torch.rand(2, 3, 4, 4))
    loss.backward()
    assert module.encoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 30, "channel_mult": (1, 2, 2)}, r"image_size \(30\) must be a multiple of 4"),
        ({"norm_groups": 7}, r"norm_groups \(7\) must divide 128"),
        ({"codebook_size": 65537}, "expected ≤ 65536"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskGITVQGANSettings(**wrong)


def test_the_published_defaults_make_256_tokens_of_1024_codes() -> None:
    with torch.device("meta"):
        module = MaskGITVQGAN(MaskGITVQGANSettings())
    assert (module.num_tokens, module.codebook_size, module.embedding_dim, module.image_size) == (256, 1024, 256, 256)
    assert module.grid == (16, 16) and module.num_tokens == 256
