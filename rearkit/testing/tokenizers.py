"""The contract of a tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rearkit.contracts import FittableTokenizer, Tokenizer, grid_of, height_width, size_text
from rearkit.data.token_writing import MAX_CODES
from rearkit.testing.clauses import (
    close,
    copy_state,
    largest,
    named,
    require,
    require_count,
    require_module,
    require_tensor,
    seeded,
)
from rearkit.testing.placement import check_tokenizer_placed

ROWS = 3
# Share of tokens that may get another code when rounding differs: those almost as near to a second code.
NEAR_TIES = 0.01


def check_tokenizer(tokenizer: Tokenizer, rebuild: Callable[[], Tokenizer] | None = None) -> None:
    """Check a tokenizer: sizes, ranges, repeatability, its codebook, and its fit if it has one.

    Args:
        tokenizer: the tokenizer to check; left in eval mode.
        rebuild: makes another one from the same settings, to check the state dict; without it, that is not checked.

    Raises:
        AssertionError: a clause of the contract is broken.
    """
    module = require_module(tokenizer, "tokenizer")
    require(
        isinstance(tokenizer, Tokenizer),
        f"a tokenizer must inherit from rearkit.contracts.Tokenizer; {named(tokenizer)} does not",
    )
    for attribute in ("num_tokens", "codebook_size", "embedding_dim"):
        require_count(tokenizer, attribute, "tokenizer")
    shape = _shape(tokenizer)
    require(
        tokenizer.codebook_size <= MAX_CODES,
        f"tokenizer.codebook_size must be {MAX_CODES} at most, since token shards hold uint16; "
        f"found {tokenizer.codebook_size}",
    )
    grid = grid_of(tokenizer)
    require(
        not tokenizer.raster or (grid is not None and shape[0] % grid[0] == 0),
        "a tokenizer with raster = True must have a grid of tokens, each of its own square patch of the image "
        f"({size_text(shape)} pixels); found {tokenizer.num_tokens} tokens",
    )
    with seeded():
        module.eval()
        images = torch.rand(ROWS, 3, *shape)
        # Black, and a picture of extreme values: results must stay in range and finite there too.
        images[0] = 0.0
        images[1] = images[1].round()
        tokens_BN = torch.randint(tokenizer.codebook_size, (ROWS, tokenizer.num_tokens))
        # The first and the last code, where an index that is off by one fails.
        tokens_BN[0] = 0
        tokens_BN[1] = tokenizer.codebook_size - 1
        before = {key: value.clone() for key, value in module.state_dict().items()}
        with torch.no_grad():
            _check_codebook(tokenizer)
            _check_encode(tokenizer, images)
            _check_decode(tokenizer, tokens_BN)
            after = module.state_dict()
            require(
                all(torch.equal(value, after[key]) for key, value in before.items()),
                "in eval mode, encode, decode and codebook must not change the tokenizer, which is frozen",
            )
            if rebuild is not None:
                _check_state(tokenizer, rebuild, images, tokens_BN)
        if isinstance(tokenizer, FittableTokenizer):
            fitted = _check_fit(module, images)
            if rebuild is not None:
                _check_state(fitted, rebuild, images, tokens_BN, ", after a step of its fit,")
            if tokenizer.decoder_modules():
                _check_decoder_fit(tokenizer, images)
        check_tokenizer_placed(copy.deepcopy(tokenizer) if rebuild is None else rebuild(), images, tokens_BN)


def _shape(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return height and width of the images, which must be a number or a pair of them."""
    size = tokenizer.image_size
    if not isinstance(size, tuple):
        require_count(tokenizer, "image_size", "tokenizer")
    elif len(size) != 2 or not all(type(side) is int and side >= 1 for side in size):
        raise AssertionError(f"tokenizer.image_size must be a whole number, or (height, width); found {size!r}")
    return height_width(size)


def _check_codebook(tokenizer: Tokenizer) -> None:
    shape = (tokenizer.codebook_size, tokenizer.embedding_dim)
    codebook_VZ = require_tensor(tokenizer.codebook(), shape, torch.float32, "codebook(), (V, Z),")
    require(codebook_VZ.isfinite().all(), "the codebook must be finite")


def _check_encode(tokenizer: Tokenizer, images: Tensor) -> None:
    shape = (len(images), tokenizer.num_tokens)
    tokens_BN = require_tensor(tokenizer.encode(images), shape, torch.int64, "encode(images), (B, N),")
    low = int(tokens_BN.min())
    high = int(tokens_BN.max())
    require(
        low >= 0 and high < tokenizer.codebook_size,
        f"tokens must lie in [0, codebook_size), that is 0 to {tokenizer.codebook_size - 1}; found {low} to {high}",
    )
    require(torch.equal(tokens_BN, tokenizer.encode(images)), "in eval mode, the same images must give the same tokens")
    # Image by image, where kernels may sum in another order.
    alone_BN = torch.cat([tokenizer.encode(image[None]) for image in images])
    require(
        (alone_BN != tokens_BN).float().mean() <= NEAR_TIES,
        "in eval mode, an image's tokens must not depend on the rest of the batch",
    )


def _check_decode(tokenizer: Tokenizer, tokens_BN: Tensor) -> None:
    shape = (len(tokens_BN), 3, *height_width(tokenizer.image_size))
    images = require_tensor(tokenizer.decode(tokens_BN), shape, torch.float32, "decode(tokens), (B, 3, H, W),")
    require(
        ((images >= 0) & (images <= 1)).all(),
        f"decoded images must lie in [0, 1]; found {images.min():g} to {images.max():g}",
    )
    require(torch.equal(images, tokenizer.decode(tokens_BN)), "in eval mode, the same tokens must give the same images")
    alone = torch.cat([tokenizer.decode(tokens_N[None]) for tokens_N in tokens_BN])
    require(
        close(alone, images),
        f"in eval mode, a decoded image must not depend on the rest of the batch; alone it differs by "
        f"{largest(alone - images):.2g}",
    )


@torch.no_grad()
def _check_state(
    tokenizer: Tokenizer, rebuild: Callable[[], Tokenizer], images: Tensor, tokens_BN: Tensor, when: str = ""
) -> None:
    # Another seed, so that the second tokenizer starts with other weights than the first.
    torch.manual_seed(1)
    second = rebuild()
    copy_state(tokenizer, require_module(second, "tokenizer").eval(), "tokenizer")
    same = {
        "tokens": torch.equal(second.encode(images), tokenizer.encode(images)),
        "images": torch.equal(second.decode(tokens_BN), tokenizer.decode(tokens_BN)),
        "codebook": torch.equal(second.codebook(), tokenizer.codebook()),
    }
    for what, holds in same.items():
        require(holds, f"a second tokenizer with the first's state dict{when} must give the same {what}")


def _check_fit(module: nn.Module, images: Tensor) -> FittableTokenizer:
    """Check a fit's loss and gradients, on a copy, since a fit changes the tokenizer; return the copy in eval mode."""
    fitted = copy.deepcopy(module).train().requires_grad_()
    assert isinstance(fitted, FittableTokenizer)
    loss, parts = fitted.fit_loss(images)
    require(
        isinstance(loss, Tensor) and loss.dim() == 0 and loss.isfinite(),
        f"fit_loss must return a finite scalar loss first; found {loss!r}",
    )
    require(
        isinstance(parts, dict) and all(isinstance(value, Tensor) and value.numel() == 1 for value in parts.values()),
        f"fit_loss must return named scalar tensors second; found {parts!r}",
    )
    require(loss.requires_grad, "the loss of fit_loss must carry a gradient")
    loss.backward()
    # Not of every parameter: a fit may leave parts frozen, or move the codebook by averages.
    gradients = [parameter.grad for parameter in fitted.parameters() if parameter.grad is not None]
    require(
        gradients and all(gradient.isfinite().all() for gradient in gradients),
        "the loss of fit_loss must give finite gradients to the tokenizer's parameters",
    )
    return fitted.eval()


def _check_decoder_fit(tokenizer: FittableTokenizer, images: Tensor) -> None:
    """Check that a fit of the decoder of loaded weights leaves tokens and codebook as they are, on a copy."""
    fitted = copy.deepcopy(tokenizer).eval().requires_grad_(False)
    copy_state(tokenizer, fitted, "tokenizer")
    decoder = [p for part in fitted.decoder_modules() for p in part.train().requires_grad_().parameters()]
    optimizer = torch.optim.SGD(decoder, lr=0.1)
    # Twice, since the first step may have prepared something that only the second one uses.
    for _ in range(2):
        optimizer.zero_grad()
        fitted.fit_loss(images)[0].backward()
        optimizer.step()
    fitted.eval()
    same = torch.equal(fitted.encode(images), tokenizer.encode(images))
    require(
        same and torch.equal(fitted.codebook(), tokenizer.codebook()),
        "a fit of the modules of decoder_modules alone must leave tokens and codebook as they are; "
        "fit_pass must change nothing of weights that were loaded, in eval mode",
    )
