from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rearkit_llamagen import rearkit_components
from rearkit_llamagen.tokenizer import LlamaGenVQ, LlamaGenVQSettings
from rearkit_llamagen.weights import LlamaGenVQLayout

from rearkit.contracts import EXTRA, num_parameters
from rearkit.testing import check_component, check_settings, check_tokenizer

AGREE = {"rtol": 0, "atol": 1e-4}
(COMPONENT,) = (component for component in rearkit_components() if component.kind == "tokenizer")
TINY = LlamaGenVQSettings(
    image_size=12,
    hidden_channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=6,
    norm_groups=4,
    codebook_size=10,
    embedding_dim=4,
)


@pytest.fixture(scope="module")
def case(reference: Callable[[str], Any]) -> Any:
    return reference("tiny_llamagen_vq")


@pytest.fixture(scope="module")
def tokenizer(case: Any) -> LlamaGenVQ:
    """The reference case's, from the sizes that its weights tell, and the image size, which they don't."""
    state = LlamaGenVQLayout().to_rearkit(case.weights)
    sizes = LlamaGenVQLayout().sizes(state)
    settings = {**sizes, "channel_mult": tuple(sizes["channel_mult"]), "image_size": case.sizes["image_size"]}
    module = LlamaGenVQ(LlamaGenVQSettings(**settings))
    module.load_state_dict({name: value for name, value in state.items() if not name.startswith(EXTRA)})
    return module.eval()


@torch.no_grad()
def test_features_agree_with_the_published_code(case: Any, tokenizer: LlamaGenVQ) -> None:
    torch.testing.assert_close(tokenizer.features(case["images"]), case["features"], **AGREE)


@torch.no_grad()
def test_tokens_are_exactly_those_of_the_published_code(case: Any, tokenizer: LlamaGenVQ) -> None:
    assert torch.equal(tokenizer.encode(case["images"]), case["tokens"])
    assert len(case["tokens"].unique()) > 1  # or equality shows little


@torch.no_grad()
def test_codebook_rows_are_the_published_embeddings_of_the_tokens(case: Any, tokenizer: LlamaGenVQ) -> None:
    torch.testing.assert_close(tokenizer.codebook()[case["tokens"]], case["token_embeddings"], **AGREE)


@torch.no_grad()
def test_reconstructions_agree_with_the_published_code(case: Any, tokenizer: LlamaGenVQ) -> None:
    torch.testing.assert_close(tokenizer.draw(case["token_embeddings"]), case["raw_reconstruction"], **AGREE)
    torch.testing.assert_close(tokenizer.decode(case["tokens"]), case["reconstruction"], **AGREE)
    assert case["raw_reconstruction"].min() < -1  # so that the clamp is seen


@torch.no_grad()
@pytest.mark.parametrize("image_size", [4, 6, 20])
def test_the_same_weights_read_images_of_other_sizes(tokenizer: LlamaGenVQ, image_size: int) -> None:
    """As the published generators do, which were trained on one tokenizer at 256 × 256 and at 384 × 384."""
    other = LlamaGenVQ(
        LlamaGenVQSettings(
            image_size=image_size,
            hidden_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            z_channels=32,
            codebook_size=64,
        )
    ).eval()
    other.load_state_dict(tokenizer.state_dict())
    tokens = other.encode(torch.rand(1, 3, image_size, image_size))
    assert tokens.shape == (1, (image_size // 2) ** 2)
    assert other.decode(tokens).shape == (1, 3, image_size, image_size)


@pytest.mark.parametrize("normalised", [True, False])
def test_it_keeps_its_contract(normalised: bool) -> None:
    check_component(COMPONENT, attrs.evolve(TINY, l2_normalised=normalised))


@given(
    side=st.integers(1, 3),
    channel_mult=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
    num_res_blocks=st.integers(1, 2),
    z_channels=st.integers(1, 9),
    codebook_size=st.integers(2, 40),
    embedding_dim=st.integers(1, 17),
)
@hypothesis_settings(max_examples=10, deadline=None, derandomize=True)
def test_it_keeps_its_contract_at_other_sizes(
    side: int,
    channel_mult: tuple[int, ...],
    num_res_blocks: int,
    z_channels: int,
    codebook_size: int,
    embedding_dim: int,
) -> None:
    settings = attrs.evolve(
        TINY,
        image_size=side * 2 ** (len(channel_mult) - 1),
        channel_mult=channel_mult,
        num_res_blocks=num_res_blocks,
        z_channels=z_channels,
        codebook_size=codebook_size,
        embedding_dim=embedding_dim,
    )
    tokenizer = LlamaGenVQ(settings)
    assert tokenizer.num_tokens == side**2
    check_tokenizer(tokenizer, lambda: LlamaGenVQ(settings))
    read = LlamaGenVQLayout().sizes(tokenizer.state_dict())
    read["channel_mult"] = tuple(read["channel_mult"])
    assert attrs.evolve(settings, **read) == settings


@pytest.mark.parametrize(
    ("channel_mult", "num_tokens", "published"), [((1, 1, 2, 2, 4), 256, 72e6), ((1, 2, 2, 4), 1024, 70e6)]
)
def test_vq_16_and_vq_8_have_the_published_sizes(
    channel_mult: tuple[int, ...], num_tokens: int, published: float
) -> None:
    settings = LlamaGenVQSettings(channel_mult=channel_mult)
    check_settings(settings)
    with torch.device("meta"):
        tokenizer = LlamaGenVQ(settings)
    assert (tokenizer.num_tokens, tokenizer.codebook_size, tokenizer.embedding_dim) == (num_tokens, 16384, 8)
    assert num_parameters(tokenizer) == pytest.approx(published, rel=0.01)
    attending = {name.split(".")[1:3][-1] for name in tokenizer.state_dict() if ".attn." in name}
    assert attending == {str(len(channel_mult) - 1), "0"}  # the encoder's last level, the decoder's first


def test_default_settings_are_vq_16() -> None:
    assert LlamaGenVQSettings() == LlamaGenVQSettings(channel_mult=(1, 1, 2, 2, 4), image_size=256)


def test_a_fit_lowers_the_loss() -> None:
    torch.manual_seed(0)
    module = LlamaGenVQ(attrs.evolve(TINY, codebook_size=32)).train()
    # Fields of random colour, one for each token.
    images = torch.rand(16, 3, 6, 6).repeat_interleave(2, 2).repeat_interleave(2, 3)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(80):
        loss, parts = module.fit_loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert set(parts) == {"reconstruction", "commitment", "codes_used"}
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    torch.testing.assert_close(module.codebook().norm(dim=-1), torch.ones(32))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 250}, r"image_size \(250\) must be a multiple of 16, the down-sampling"),
        ({"norm_groups": 48}, r"norm_groups \(48\) must divide 128, the channels of a level"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LlamaGenVQSettings(**wrong)
