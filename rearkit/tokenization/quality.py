"""How good a tokenizer is, and whether token shards are correct.

Token files can be wrong without an error: another codebook order, another crop, another tokenizer. So written tokens
are read back, decoded, and compared with the images. They are also decoded and encoded again, which returns most of
them only with the tokenizer that made them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from rearkit.contracts import Tokenizer
from rearkit.data.image_sets import ImageSet
from rearkit.data.pixels import psnr, save_grid, save_pairs, to_float, to_uint8
from rearkit.data.subsets import drawn
from rearkit.data.token_shards import TokenData
from rearkit.errors import DataError
from rearkit.registry.contract import blaming

GRID_IMAGES = 16
# Enough for each of 1024 codes to occur 12,500 times on average, at 256 tokens a sample.
USAGE_SAMPLES = 50_000


def encode(tokenizer: Tokenizer, images_B3RR: Tensor) -> Tensor:
    """Return the tokens (B, N) of images (B, 3, R, R) float32 in [0, 1].

    Raises:
        ContractError: a plugin's tokenizer does not return such tokens.
        ValueError: another does not.
    """
    with blaming(tokenizer):
        tokens_BN = tokenizer.encode(images_B3RR)
        if tokens_BN.dim() != 2 or len(tokens_BN) != len(images_B3RR):
            raise ValueError(
                f"encode must return tokens (B, N), ({len(images_B3RR)}, {tokenizer.num_tokens}); "
                f"found {tuple(tokens_BN.shape)}"
            )
    return tokens_BN


@torch.no_grad()
def rebuilt_psnr(tokenizer: Tokenizer, batches: Iterable[Tensor]) -> Tensor:
    """Encode and decode batches of images (b, 3, R, R) uint8; return the PSNR of each image in dB, (n,).

    One batch at a time is kept: a whole split as floats would not fit a GPU.
    """
    device = module_device(tokenizer)
    found = [torch.empty(0)]
    for batch in batches:
        originals = to_float(batch.to(device))
        tokens_BN = encode(tokenizer, originals)
        with blaming(tokenizer):
            rebuilt = to_float(to_uint8(tokenizer.decode(tokens_BN)))
            found.append(psnr(rebuilt, originals).cpu())
    return torch.cat(found)


@torch.no_grad()
def decode(tokenizer: Tokenizer, tokens_BN: Tensor, batch: int) -> Tensor:
    """Decode tokens (B, N) to images (B, 3, R, R) float32 in [0, 1], on the CPU."""
    device = module_device(tokenizer)
    with blaming(tokenizer):
        return torch.cat([tokenizer.decode(part.to(device)) for part in tokens_BN.split(batch)]).cpu()


@torch.no_grad()
def survival(tokenizer: Tokenizer, tokens_BN: Tensor, batch: int) -> float:
    """Return the share of tokens, in [0, 1], that are the same after decoding and encoding again."""
    device = module_device(tokenizer)
    same = [
        (tokenizer.encode(tokenizer.decode(part.to(device))).cpu() == part).float().mean(1)
        for part in tokens_BN.split(batch)
    ]
    return torch.cat(same).mean().item()


def codebook_usage(data: TokenData, codebook_size: int) -> tuple[float, float]:
    """Return the share of codes that occur, in [0, 1], and their perplexity, both in a sample of the data.

    Raises:
        DataError: a token is not a code of the tokenizer.
    """
    tokens, _ = data.take(drawn(len(data), USAGE_SAMPLES))
    if int(tokens.max()) >= codebook_size:
        raise DataError(f"the token shards hold token {int(tokens.max())}, but the tokenizer has {codebook_size} codes")
    return usage(torch.bincount(tokens.flatten(), minlength=codebook_size))


def usage(counts_V: Tensor) -> tuple[float, float]:
    """Return the share of codes that occur, in [0, 1], and their perplexity, from the counts (V,) of all codes."""
    # Without the codes that do not occur, whose 0·log 0 would be NaN.
    share = counts_V[counts_V > 0].double() / counts_V.sum()
    return (counts_V > 0).double().mean().item(), (-(share * share.log()).sum()).exp().item()


def compare(tokenizer: Tokenizer, data: TokenData, images: ImageSet, batch: int, picture: Path) -> float:
    """Decode the tokens of images and return the mean PSNR to the originals, in dB.

    Args:
        tokenizer: a frozen tokenizer.
        data: the tokens, a sample for each image, in the same order.
        images: the originals.
        batch: images decoded at once.
        picture: file for a grid of originals and decoded images.

    Raises:
        DataError: the classes differ from those of the images, so the tokens belong to other images.
    """
    tokens, classes = data.take(range(len(images)))
    if not torch.equal(classes, images.labels):
        raise DataError("the classes in the token shards are not those of the images; run the stage again")
    decoded = decode(tokenizer, tokens, batch)
    save_pairs(picture, images.images[:GRID_IMAGES], to_uint8(decoded[:GRID_IMAGES]))
    return psnr(decoded, to_float(images.images)).mean().item()


def show_decoded(tokenizer: Tokenizer, data: TokenData, picture: Path) -> None:
    """Save a grid of decoded tokens, for tokens without images to compare with."""
    tokens, _ = data.take(drawn(len(data), 2 * GRID_IMAGES))
    save_grid(picture, to_uint8(decode(tokenizer, tokens, GRID_IMAGES)), GRID_IMAGES)


def module_device(module: nn.Module) -> torch.device:
    """Return the device that a module is on: the CPU if it has neither parameters nor buffers."""
    held = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if held is None else held.device
