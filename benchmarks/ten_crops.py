"""Ten crops by `crop = "adm"` and by the published code: how many of their tokens are equal, on a folder's photographs.

    python benchmarks/ten_crops.py PHOTOS                                   # fits a small tokenizer on them first
    python benchmarks/ten_crops.py PHOTOS --weights maskgit-vqgan.bin       # the published tokenizer

The published way (ADM's center_crop_arr to int(1.1 · 256) pixels, as LlamaGen's and RAR's code has it, then
torchvision's TenCrop) is written out here, from files to tokens. Beside it stands rearkit's, from files through shards.
The last line is a JSON object: ``photographs``, and for each of ``adm`` and ``center`` the share of equal ``tokens``
and of equal ``pixels``. ``center`` crops are cut out of 282 pixels, not 281, so they show what the difference would be.
What was found stands in ``docs/performance/data.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import TenCrop

from rearkit import load_recipe
from rearkit.data.access import Access
from rearkit.data.class_folders import files_below, find_images
from rearkit.data.convert import Labelling, images_to_shards
from rearkit.data.decoding import Decoding
from rearkit.data.image_sets import ImageSet, Split
from rearkit.data.image_shards import read_headers
from rearkit.data.pixels import psnr, to_float
from rearkit.data.shard_members import Fields
from rearkit.model import build_tokenizer
from rearkit.stages.tokenizer import fit_tokenizer
from rearkit.tokenization.quality import reconstruct
from rearkit.tokenization.views import read_at, views

SIZE = 256
# Of the published shape in what matters here, 16 × 16 tokens for 256 × 256 pixels; small, so that it fits in minutes.
SMALL = {
    "name": "maskgit-vqgan", "image_size": SIZE, "hidden_channels": 8, "channel_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 1, "norm_groups": 8, "codebook_size": 256, "embedding_dim": 16,
}  # fmt: skip


def published(path: Path) -> Tensor:
    """Ten crops (10, 3, 256, 256) uint8 of an image file, as published code makes them."""
    image, side = Image.open(path).convert("RGB"), int(SIZE * 1.1)
    while min(*image.size) >= 2 * side:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = side / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    array = np.array(image)
    y, x = (array.shape[0] - side) // 2, (array.shape[1] - side) // 2
    cropped = Image.fromarray(array[y : y + side, x : x + side])
    return torch.stack([torch.from_numpy(np.array(crop)).permute(2, 0, 1) for crop in TenCrop(SIZE)(cropped)])


def through_shards(photographs: Path, crop: str) -> dict[str, Tensor]:
    """Ten crops of each image as rearkit tokenizes them, by the image's key."""
    fields = Fields(unlabelled=True)
    with tempfile.TemporaryDirectory() as place:
        shards = images_to_shards(photographs, Path(place), workers=1, labelling=Labelling(none=True))
        counts = {str(shard): read_headers(str(shard), fields).samples for shard in shards}
        how = read_at("ten-crop", Decoding(SIZE, crop))
        split = Split(name="train", shards=counts, num_classes=1, decoding=how, access=Access(fields=fields))
        return {read.key: torch.stack(views(read.image, "ten-crop", SIZE)) for read in split.read()}


def tokenizer_of(arguments: argparse.Namespace, crops: Tensor) -> torch.nn.Module:
    """The published tokenizer, or a small one that is fitted on the crops."""
    table = {"name": "maskgit-vqgan", "weights": str(arguments.weights)} if arguments.weights else dict(SMALL)
    if not arguments.weights:
        table["fit"] = {"steps": arguments.steps, "batch": 2, "warmup_steps": min(10, arguments.steps // 2)}
    recipe = load_recipe({
        "name": "ten-crops", "device": "cpu", "data": {"source": {"name": "mnist-5k"}}, "tokenizer": table,
        "backbone": {"name": "dit-ar"}, "train": {"steps": 1, "global_batch": 1}, "sample": {"num_images": 1},
    })  # fmt: skip
    images = ImageSet(crops, torch.zeros(len(crops), dtype=torch.int64))
    tokenizer = build_tokenizer(recipe) if arguments.weights else fit_tokenizer(recipe, images)
    tokenizer.eval().requires_grad_(False)
    ratio = psnr(to_float(reconstruct(tokenizer, crops[::10], 8)), to_float(crops[::10])).mean()
    print(f"tokenizer: {ratio:.1f} dB PSNR on the photographs")
    return tokenizer


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The share of equal values."""
    return torch.cat([(found[key] == expected[key]).flatten() for key in expected]).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of image files")
    parser.add_argument("--weights", type=Path, help="the published tokenizer's; left out, a small one is fitted")
    parser.add_argument("--steps", type=int, default=100, help="of the fit")
    arguments = parser.parse_args()
    found = find_images((path for path, _ in files_below(arguments.photographs)), "photographs", by_folder=False)
    theirs = {image.key: published(arguments.photographs / image.path) for image in found}
    tokenizer = tokenizer_of(arguments, torch.cat(list(theirs.values())))

    def tokens(crops: Tensor) -> Tensor:
        return torch.cat([tokenizer.encode(to_float(part)) for part in crops.split(10)])

    expected = {key: tokens(crops) for key, crops in theirs.items()}
    used = len(torch.cat(list(expected.values())).unique())
    print(f"{sum(map(torch.numel, expected.values()))} tokens, {used} codes in use")
    result: dict[str, object] = {"photographs": len(theirs)}
    for crop in ("adm", "center"):
        ours = through_shards(arguments.photographs, crop)
        assert ours.keys() == theirs.keys()
        result[crop] = {
            "tokens": torch.cat([(tokens(ours[key]) == expected[key]).flatten() for key in ours])
            .double()
            .mean()
            .item(),
            "pixels": torch.cat([(ours[key] == theirs[key]).flatten() for key in ours]).double().mean().item(),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
