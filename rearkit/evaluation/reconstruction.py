"""Rate and distortion of a tokenizer: bits and codes in use; rFID, PSNR and SSIM of its reconstructions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import attrs
import torch
from torch import Tensor

from rearkit.contracts import Tokenizer, height_width
from rearkit.data.pixels import psnr, to_float, to_uint8
from rearkit.evaluation.batch_rows import Look
from rearkit.evaluation.features import Features, collect
from rearkit.evaluation.fidelity import frechet
from rearkit.evaluation.image_streams import Images
from rearkit.evaluation.shares import WHOLE, Rows, Share
from rearkit.tokenization.quality import module_device, usage

SSIM_WINDOW = 11  # side of the Gaussian window in pixels, of standard deviation 1.5 (Wang et al. 2004)


@attrs.frozen
class Reconstruction:
    """Rate and distortion of a tokenizer.

    Attributes:
        rfid: Fréchet distance of decoded images to the originals, in the scores' feature space.
        psnr: mean over images of the peak signal-to-noise ratio, in dB.
        ssim: mean over images of the structural similarity (Wang et al. 2004) of the RGB channels; 1 is the best.
        codebook_use: share of the codes that occur, in [0, 1].
        perplexity: exponential of the codes' entropy: the number of equally frequent codes with the same entropy.
        bits_per_pixel: number of tokens times log2 of the codebook's size, divided by the number of pixels.
        num_images: number of images encoded and decoded.
        images: what the images are: "held-out" or "training".
    """

    rfid: float
    psnr: float
    ssim: float
    codebook_use: float
    perplexity: float
    bits_per_pixel: float
    num_images: int
    images: str


@torch.no_grad()
def decoded_rows(tokenizer: Tokenizer, images: Images, look: Look, batch: int, share: Share = WHOLE) -> Iterator[Rows]:
    """Encode and decode the images of a share, batch by batch, and look at the results.

    The rows have, besides those of ``look``, ``psnr`` (B,) and ``ssim`` (B,) of each image, and ``codes`` (V,): how
    often each code occurs in the batch. All is measured while an image is there, so that it is decoded once and never
    kept.

    Args:
        tokenizer: frozen, in eval mode.
        images: of the tokenizer's size.
        look: looks at the decoded images.
        batch: images at once.
        share: which of the images.
    """
    device = module_device(tokenizer)
    for part in images.batches(batch, share):
        originals = part.to(device)
        tokens_BN = tokenizer.encode(to_float(originals))
        # Rounded to bytes, like images that are saved.
        rebuilt = to_uint8(tokenizer.decode(tokens_BN))
        yield look(rebuilt) | {
            "psnr": psnr(to_float(rebuilt), to_float(originals)).cpu(),
            "ssim": ssim(rebuilt, originals).cpu(),
            "codes": torch.bincount(tokens_BN.flatten(), minlength=tokenizer.codebook_size).cpu(),
        }


def measure(
    tokenizer: Tokenizer, rows: Iterable[Rows], real: Features, device: torch.device, told: str
) -> Reconstruction:
    """Put together what `decoded_rows` has found.

    Args:
        tokenizer: of which they are.
        rows: of all batches, in order.
        real: features of the originals.
        device: where sums are computed.
        told: what the images are, in words.
    """
    sums = {"psnr": 0.0, "ssim": 0.0}
    counts = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)

    def summed() -> Iterator[Rows]:
        for found in rows:
            for name in sums:
                sums[name] += found[name].sum().item()
            counts.add_(found["codes"])
            yield found

    found = collect(summed(), len(real), device)
    codebook_use, perplexity = usage(counts)
    return Reconstruction(
        rfid=frechet(found.gaussian, real.gaussian),
        psnr=sums["psnr"] / len(found),
        ssim=sums["ssim"] / len(found),
        codebook_use=codebook_use,
        perplexity=perplexity,
        bits_per_pixel=tokenizer.num_tokens
        * math.log2(tokenizer.codebook_size)
        / math.prod(height_width(tokenizer.image_size)),
        num_images=len(found),
        images=told,
    )


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Return the structural similarity (B,) in [-1, 1] of uint8 images (B, 3, H, W), by pytorch-msssim."""
    import pytorch_msssim

    side = min(images.shape[-2:])
    # Smaller images need a smaller window, which must be odd.
    window = min(SSIM_WINDOW, side - 1 + side % 2)
    found: Tensor = pytorch_msssim.ssim(
        images.float(), reference.float(), data_range=255, size_average=False, win_size=window
    )
    return found


def reconstruction_lines(found: Reconstruction) -> list[str]:
    """Format the measures as lines of text."""
    return [
        f"rFID {found.rfid:.2f}, PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.3f} of {found.num_images} {found.images} "
        "images, decoded from their tokens",
        f"{found.bits_per_pixel:.3f} bits a pixel; {found.codebook_use:.1%} of the codes in use, "
        f"perplexity {found.perplexity:.1f}",
    ]
