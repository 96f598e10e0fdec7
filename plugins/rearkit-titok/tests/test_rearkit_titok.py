from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import settings as profile
from hypothesis import strategies as st
from rearkit_titok import rearkit_components
from rearkit_titok.settings import SIZES, TiTokSettings
from rearkit_titok.tokenizer import TiTok
from rearkit_titok.weights import TiTokLayout
from safetensors.torch import load_file
from torch import Tensor

import rearkit
from rearkit.contracts import FittableTokenizer, RegularizerContext, TokenSpace
from rearkit.testing import check_component, check_published

REFERENCE = Path(__file__).parents[3] / "tests" / "reference"
torch.set_num_threads(1)  # at these sizes, threads cost more than they bring
AGREE = {"rtol": 0, "atol": 1e-4}
SMALL = TiTokSettings(
    image_size=16,
    patch_size=4,
    num_tokens=6,
    width=16,
    num_layers=2,
    num_heads=2,
    codebook_size=24,
    pixel_codebook_size=8,
    pixel_embedding_dim=4,
    pixel_hidden_channels=4,
    pixel_channel_mult=(1, 2, 2),
    pixel_res_blocks=1,
    pixel_norm_groups=2,
)


@pytest.fixture(scope="module")
def case() -> dict[str, Tensor]:
    return load_file(REFERENCE / "tiny_titok.cases.safetensors")


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return load_file(REFERENCE / "tiny_titok.weights.safetensors")


@pytest.fixture(scope="module")
def tokenizer(published: dict[str, Tensor]) -> TiTok:
    """The reference case's, from the sizes that its weights tell, and the number of heads, which they don't."""
    heads = json.loads((REFERENCE / "tiny_titok.json").read_text(encoding="utf-8"))["heads"]
    module = TiTok(TiTokSettings(num_heads=heads, **sizes_of(published)))
    module.load_state_dict(TiTokLayout().to_rearkit(published))
    return module.eval().requires_grad_(False)


def sizes_of(state: dict[str, Tensor]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in TiTokLayout().sizes(state).items()}


def test_it_keeps_its_contract() -> None:
    (component,) = rearkit_components()
    check_component(component, SMALL)


def test_features_agree_with_the_published_code(case: dict[str, Tensor], tokenizer: TiTok) -> None:
    torch.testing.assert_close(tokenizer.features(case["images"]), case["features"], **AGREE)


def test_tokens_are_exactly_those_of_the_published_code(case: dict[str, Tensor], tokenizer: TiTok) -> None:
    assert torch.equal(tokenizer.encode(case["images"]), case["tokens"])
    assert len(case["tokens"].unique()) > 1  # or equality shows little


def test_codebook_rows_are_the_published_embeddings_of_the_tokens(case: dict[str, Tensor], tokenizer: TiTok) -> None:
    torch.testing.assert_close(tokenizer.codebook()[case["tokens"]], case["token_embeddings"], **AGREE)


def test_pixel_logits_agree_with_the_published_code(case: dict[str, Tensor], tokenizer: TiTok) -> None:
    torch.testing.assert_close(tokenizer.pixel_logits(case["token_embeddings"]), case["pixel_logits"], **AGREE)


def test_reconstructions_agree_with_the_published_code(case: dict[str, Tensor], tokenizer: TiTok) -> None:
    torch.testing.assert_close(tokenizer.paint(case["pixel_logits"]), case["reconstruction"], **AGREE)
    torch.testing.assert_close(tokenizer.decode(case["tokens"]), case["reconstruction"].clamp(0, 1), **AGREE)
    assert case["reconstruction"].min() < 0  # so that the clamp is seen


def test_published_weights_are_recognised_and_translate_there_and_back(published: dict[str, Tensor]) -> None:
    layout = TiTokLayout()
    sizes = json.loads((REFERENCE / "tiny_titok.json").read_text(encoding="utf-8"))
    renamed = {"num_layers": "layers", "num_heads": "heads"}
    names = [field.name for field in attrs.fields(TiTokSettings) if renamed.get(field.name, field.name) in sizes]
    given = {name: sizes[renamed.get(name, name)] for name in names}
    given["pixel_channel_mult"] = tuple(given["pixel_channel_mult"])
    (component,) = rearkit_components()
    check_published(component, published, TiTokSettings(**given))
    assert not layout.recognises({key: v for key, v in published.items() if not key.startswith("pixel_")})


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"image_size": 24, "num_tokens": 1, "width": 12, "num_layers": 1, "num_heads": 3},
        {"patch_size": 2, "pixel_channel_mult": (2, 3), "pixel_res_blocks": 2, "codebook_size": 7, "embedding_dim": 5},
    ],
)
def test_weights_tell_the_sizes_they_need(sizes: dict[str, Any]) -> None:
    settings = attrs.evolve(SMALL, **sizes)
    told = sizes_of(TiTok(settings).state_dict())
    rebuilt = TiTok(attrs.evolve(SMALL, num_heads=settings.num_heads, **told))
    rebuilt.load_state_dict(TiTok(settings).state_dict())
    for key in ("image_size", "patch_size", "num_tokens", "width", "num_layers", "codebook_size", "embedding_dim"):
        assert told[key] == getattr(settings, key)


@pytest.mark.parametrize(("size", "num_tokens"), [("small", 128), ("base", 64), ("large", 32)])
def test_published_sizes(size: str, num_tokens: int) -> None:
    with torch.device("meta"):
        module = TiTok(TiTokSettings(size=size, num_tokens=num_tokens))
    assert module.codebook().shape == (4096, 12)
    state = module.state_dict()
    assert state["encoder.positional_embedding"].shape == (257, SIZES[size][0])
    assert sizes_of(state)["size"] == size
    assert len(module.encoder.transformer) == len(module.decoder.transformer) == SIZES[size][1]


@given(
    levels=st.integers(1, 3),
    grid=st.integers(1, 3),
    num_tokens=st.integers(1, 9),
    head_width=st.integers(1, 4),
    heads=st.integers(1, 3),
    codes=st.integers(2, 9),
    embedding_dim=st.integers(1, 12),
    batch=st.integers(1, 3),
)
@profile(max_examples=15, deadline=None, derandomize=True)
@torch.no_grad()
def test_shapes_and_ranges_are_the_contracts_at_any_size(
    levels: int, grid: int, num_tokens: int, head_width: int, heads: int, codes: int, embedding_dim: int, batch: int
) -> None:
    patch = 2 ** (levels - 1)
    settings = attrs.evolve(
        SMALL,
        image_size=grid * patch,
        patch_size=patch,
        num_tokens=num_tokens,
        width=heads * head_width,
        num_heads=heads,
        codebook_size=codes,
        embedding_dim=embedding_dim,
        pixel_channel_mult=(1, 2, 1)[:levels],
    )
    module = TiTok(settings).eval()
    assert isinstance(module, FittableTokenizer)
    tokens = module.encode(torch.rand(batch, 3, grid * patch, grid * patch))
    assert tokens.shape == (batch, num_tokens)
    assert tokens.dtype == torch.int64
    assert 0 <= tokens.min() <= tokens.max() < codes
    decoded = module.decode(tokens)
    assert decoded.shape == (batch, 3, grid * patch, grid * patch)
    assert 0 <= decoded.min() <= decoded.max() <= 1


def test_a_token_may_change_the_image_anywhere() -> None:
    """There is no grid: every patch sees every token."""
    torch.manual_seed(0)
    module = TiTok(attrs.evolve(SMALL, pixel_res_blocks=1)).eval()
    codes_BNZ = torch.randn(1, 6, 12, requires_grad=True)
    logits = module.pixel_logits(codes_BNZ)
    for row in range(4):
        for column in range(4):
            (gradient,) = torch.autograd.grad(logits[0, 0, row, column], codes_BNZ, retain_graph=True)
            assert (gradient[0].abs().sum(-1) > 0).all()


def patterns(count: int) -> Tensor:
    """Images of 2 × 2 fields of random colour, (count, 3, 16, 16)."""
    return torch.rand(count, 3, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_a_fit_lowers_the_loss_on_a_frozen_encoder() -> None:
    torch.manual_seed(0)
    module = TiTok(SMALL).train()
    images = patterns(16)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses, encoders = [], []
    for _ in range(100):
        loss, parts = module.fit_loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        encoders.append(module.features(images))
    assert set(parts) == {"squared", "absolute", "codes_used"}
    torch.testing.assert_close(loss, parts["squared"] + parts["absolute"])
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert torch.equal(encoders[0], encoders[-1])
    torch.testing.assert_close(module.codebook().norm(dim=-1), torch.ones(24))


@torch.no_grad()
def test_a_fit_begins_by_telling_images_apart() -> None:
    torch.manual_seed(0)
    module, images = TiTok(attrs.evolve(SMALL, width=32)).train(), patterns(64)

    def spread() -> float:
        directions = torch.nn.functional.normalize(module.features(images), dim=1)
        return directions.var(0).sum(0).mean().item()  # 1 where they point anywhere, 0 where they are all the same

    assert spread() < 0.2
    module.fit_loss(images)
    assert spread() > 0.4


@torch.no_grad()
def test_a_fit_begins_with_the_images_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/plugins/test_fits_on_ranks.py` has real ranks."""
    torch.manual_seed(0)
    whole, images = TiTok(SMALL), patterns(8)
    share = copy.deepcopy(whole)
    others = whole.encoder._latents(images[3:], whole.latent_tokens).squeeze(3)
    whole.encoder.aim(images, whole.latent_tokens)
    monkeypatch.setattr("rearkit_titok.vit.joined", lambda rows: torch.cat([rows, others]))
    share.encoder.aim(images[:3], share.latent_tokens)
    torch.testing.assert_close(share.features(images), whole.features(images), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_fit_of_loaded_weights_keeps_their_encoder() -> None:
    torch.manual_seed(0)
    first, images = TiTok(SMALL).train(), patterns(16)
    first.fit_loss(images)
    second = TiTok(SMALL)
    second.load_state_dict(first.state_dict())
    second.train().fit_loss(patterns(16))
    assert torch.equal(second.features(images), first.features(images))


@pytest.mark.parametrize("num_tokens", [1, 6])
def test_a_fit_can_begin_on_a_single_image(num_tokens: int) -> None:
    module = TiTok(attrs.evolve(SMALL, num_tokens=num_tokens)).train()
    loss, _ = module.fit_loss(torch.zeros(1, 3, 16, 16))
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_the_regularizer_learns_its_embeddings() -> None:
    """rearkit's own, without a change: codes of width 12 and length 1, tokens without a grid."""
    torch.manual_seed(0)
    tokenizer = TiTok(SMALL).eval().requires_grad_(False)
    tokens_BN = torch.randint(24, (16, 6))
    backbone = rearkit.make("backbone", "dit-ar", TokenSpace(6, 24, 3), hidden_size=32, num_layers=4, num_heads=2)
    context = RegularizerContext(backbone.hidden_size, backbone.num_layers, tokenizer.codebook())
    regularizer = rearkit.make("regularizer", "codebook-embedding", context, projection_dim=64)
    objective = rearkit.Objective({"codebook-embedding": regularizer})
    optimizer = torch.optim.Adam([*backbone.parameters(), *objective.parameters()], lr=3e-3)
    classes_B, kept_BN = torch.zeros(16, dtype=torch.int64), torch.zeros(16, 6, dtype=torch.bool)
    for _ in range(80):
        logits, hidden = backbone(tokens_BN, classes_B, objective.layers)
        loss = objective(logits, hidden, tokens_BN, kept_BN, backbone.prefix_length)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    terms = {name: loss.parts[f"regularizer/codebook-embedding/{name}"] for name in ("encode", "decode")}
    assert terms["encode"].item() < -0.8  # -1: block 0 tells the embedding of each token that it reads
    assert terms["decode"].item() < -0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 250}, r"patch_size \(16\) must divide image_size \(250\)"),
        ({"patch_size": 8}, r"5 levels of pixel_channel_mult make patches of 16 pixels, but patch_size is 8"),
        ({"num_heads": 7}, r"num_heads \(7\) must divide the width \(768\)"),
        ({"pixel_norm_groups": 48}, r"pixel_norm_groups \(48\) must divide 128"),
        ({"size": "huge"}, "expected one of 'small', 'base', 'large'"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiTokSettings(**wrong)
