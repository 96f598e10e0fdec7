from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rearkit_alitok import rearkit_components
from rearkit_alitok.tokenizer import AliTok, AliTokSettings
from rearkit_alitok.weights import AliTokLayout

from rearkit.testing import check_component, check_published, check_settings, check_tokenizer

AGREE = {"rtol": 0, "atol": 1e-4}
(COMPONENT,) = (component for component in rearkit_components() if component.kind == "tokenizer")
TINY = AliTokSettings(
    image_size=12,
    patch_size=4,
    prefix_tokens=4,
    buffer_tokens=2,
    codebook_size=10,
    embedding_dim=6,
    encoder_width=16,
    encoder_layers=1,
    encoder_heads=2,
    decoder_width=24,
    decoder_layers=2,
    decoder_heads=3,
)


@pytest.fixture(scope="module")
def case(reference: Callable[[str], Any]) -> Any:
    return reference("tiny_alitok_tokenizer")


@pytest.fixture(scope="module")
def tokenizer(case: Any) -> AliTok:
    read = AliTokLayout().sizes(case.weights)
    heads = {name: case.sizes[name] for name in ("encoder_heads", "decoder_heads")}
    module = AliTok(AliTokSettings(**read, **heads))
    module.load_state_dict(case.weights)
    return module.eval()


def test_published_weights_are_recognised_and_translate_there_and_back(case: Any) -> None:
    names = [name for name in case.sizes if name not in ("num_tokens", "seed")]
    sizes = {name: case.sizes[name] for name in names}
    settings = AliTokSettings(**sizes, image_size=case["images"].shape[-1], patch_size=16, prefix_tokens=17)
    read = AliTokLayout().sizes(case.weights)
    check_published(COMPONENT, case.weights, attrs.evolve(settings, buffer_tokens=read["buffer_tokens"]))


@torch.no_grad()
def test_features_agree_with_the_published_code(case: Any, tokenizer: AliTok) -> None:
    found = tokenizer.features(case["images"])
    torch.testing.assert_close(found.transpose(1, 2)[:, :, None], case["features"], **AGREE)


@torch.no_grad()
def test_tokens_are_exactly_those_of_the_published_code(case: Any, tokenizer: AliTok) -> None:
    assert torch.equal(tokenizer.encode(case["images"]), case["tokens"])
    assert len(case["tokens"].unique()) > 1  # or equality shows little


@torch.no_grad()
def test_codebook_rows_are_the_published_embeddings_of_the_tokens(case: Any, tokenizer: AliTok) -> None:
    torch.testing.assert_close(tokenizer.codebook()[case["tokens"]], case["token_embeddings"], **AGREE)


@torch.no_grad()
def test_reconstruction_agrees_with_the_published_code(case: Any, tokenizer: AliTok) -> None:
    """To a hundredth of the picture's own contrast, which at random weights is low."""
    decoded = tokenizer.decode(case["tokens"])[:, :, ::4, ::4]
    torch.testing.assert_close(decoded, case["reconstruction_every_4th"], rtol=0, atol=1e-5)
    assert case["reconstruction_every_4th"].std() > 1e-2


def test_sizes_are_read_off_the_weights(case: Any) -> None:
    sizes = AliTokLayout().sizes(case.weights)
    assert sizes["prefix_tokens"] == 17
    assert sizes["image_size"] == case["images"].shape[-1]
    for name in ("encoder_width", "encoder_layers", "decoder_width", "decoder_layers", "codebook_size"):
        assert sizes[name] == case.sizes[name]


@pytest.mark.parametrize("causal", [False, True], ids=["each patch from all tokens", "from its own and earlier ones"])
def test_it_keeps_its_contract(causal: bool) -> None:
    check_component(COMPONENT, attrs.evolve(TINY, causal_decoder=causal))


@given(
    side=st.integers(1, 3),
    patch_size=st.integers(1, 5),
    prefix_tokens=st.integers(0, 4),
    buffer_tokens=st.integers(0, 3),
    codebook_size=st.integers(2, 40),
    embedding_dim=st.integers(1, 33),
    heads=st.sampled_from([(1, 2), (3, 1)]),
)
@hypothesis_settings(max_examples=10, deadline=None, derandomize=True)
def test_it_keeps_its_contract_at_other_sizes(
    side: int,
    patch_size: int,
    prefix_tokens: int,
    buffer_tokens: int,
    codebook_size: int,
    embedding_dim: int,
    heads: tuple[int, int],
) -> None:
    settings = AliTokSettings(
        image_size=side * patch_size,
        patch_size=patch_size,
        prefix_tokens=prefix_tokens,
        buffer_tokens=buffer_tokens,
        codebook_size=codebook_size,
        embedding_dim=embedding_dim,
        encoder_width=8 * heads[0],
        encoder_layers=1,
        encoder_heads=heads[0],
        decoder_width=8 * heads[1],
        decoder_layers=1,
        decoder_heads=heads[1],
    )
    tokenizer = AliTok(settings)
    assert tokenizer.num_tokens == prefix_tokens + side**2
    check_tokenizer(tokenizer, lambda: AliTok(settings))


def test_published_sizes_are_the_defaults() -> None:
    settings = AliTokSettings()
    check_settings(settings)
    with torch.device("meta"):
        tokenizer = AliTok(settings)
    assert (tokenizer.num_tokens, tokenizer.codebook_size, tokenizer.embedding_dim) == (273, 4096, 32)


@torch.no_grad()
def test_a_causal_decoder_draws_a_patch_from_its_own_and_earlier_tokens() -> None:
    """Place of the third grid token: row 0, column 2."""
    for causal in (True, False):
        tokenizer = AliTok(attrs.evolve(TINY, causal_decoder=causal)).eval()
        tokens = torch.randint(TINY.codebook_size, (1, tokenizer.num_tokens))
        changed = tokens.clone()
        changed[0, TINY.prefix_tokens + 2] = (tokens[0, TINY.prefix_tokens + 2] + 1) % TINY.codebook_size
        difference = (tokenizer.decode(tokens) - tokenizer.decode(changed)).abs()
        patches = difference.unfold(2, 4, 4).unfold(3, 4, 4).amax((0, 1, 4, 5)).flatten()  # nine, in raster order
        assert (patches[:2].max() > 0) != causal
        assert patches[2:].min() > 0


def test_a_fit_brings_the_images_back_and_codes_into_use() -> None:
    """Plain colours: features alone first, then codes."""
    torch.manual_seed(0)
    tokenizer = AliTok(attrs.evolve(TINY, continuous_steps=60)).train()
    images = torch.rand(16, 3, 1, 1).expand(-1, -1, 12, 12).contiguous()
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=5e-3)
    errors, used = [], []
    for _ in range(120):
        loss, parts = tokenizer.fit_loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(parts["reconstruction"].item())
        used.append("codes_used" in parts)
    assert used == [False] * 60 + [True] * 60
    assert errors[59] < errors[0] / 3
    assert errors[-1] < errors[0] / 2
    assert parts["codes_used"] >= 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 13}, r"image_size \(13\) must be a multiple of patch_size \(4\)"),
        ({"encoder_heads": 3}, r"encoder_width \(16\) must be a multiple of encoder_heads \(3\)"),
        ({"decoder_heads": 5}, r"decoder_width \(24\) must be a multiple of decoder_heads \(5\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attrs.evolve(TINY, **wrong)
