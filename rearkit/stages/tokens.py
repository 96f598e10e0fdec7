"""The stage ``tokens``: a token shard for each image shard, or an index of images; and a check of the result."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from rearkit.contracts import SPLITS, Tokenizer, square_side
from rearkit.data.fetching import ShardCache
from rearkit.data.image_index import ImageIndex, ImageReader, write_index
from rearkit.data.image_sets import ImageSet
from rearkit.data.shard_lists import tars_in
from rearkit.data.subsets import drawn
from rearkit.data.token_shards import TokenData, whole_shards
from rearkit.data.token_writing import MAX_CODES
from rearkit.errors import DataError, RearkitError
from rearkit.recipe.tables import VIEWS, Recipe
from rearkit.stages.data import decoding_of, keep_counts, open_split
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import Outcome, Stage
from rearkit.stages.tokenizer import fitted_tokenizer
from rearkit.system import distributed
from rearkit.system.console import say
from rearkit.system.devices import resolve_device
from rearkit.system.files import read_json, sha256, write_json
from rearkit.tokenization.by_rank import write_token_shards
from rearkit.tokenization.on_the_fly import OnTheFly
from rearkit.tokenization.quality import codebook_usage, compare, module_device, show_decoded, survival
from rearkit.tokenization.views import read_at, views


def run(recipe: Recipe, folder: RunFolder) -> Outcome:
    """Write the token shards on all ranks; then read some of them back, decode them and check them, on the first."""
    tokenizer = fitted_tokenizer(recipe, folder)
    # Otherwise codes would wrap around silently when they are written.
    if tokenizer.codebook_size > MAX_CODES:
        raise RearkitError(f"[tokenizer]: {tokenizer.codebook_size} codes do not fit the uint16 of token shards")
    tokenizer.to(distributed.local_device(resolve_device(recipe.device)))
    skipped: Counter[str] = Counter()
    shards = {split: _tokenize_split(recipe, folder, tokenizer, split, skipped) for split in SPLITS}
    return distributed.from_main(lambda: _finish(recipe, folder, tokenizer, shards, skipped))


def _finish(
    recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, shards: dict[str, list[str]], skipped: Counter[str]
) -> Outcome:
    """List the token shards, index the images that have none, and check both."""
    digests: dict[str, str] = {}
    written = [*shards["train"], *shards["held-out"]]
    # Shards made elsewhere stay where they are. They are no outputs of the stage, so their hashes are kept here.
    if recipe.tokens.pretokenized is not None:
        shards["train"] = _pretokenized(recipe.tokens.pretokenized)
        written = shards["held-out"]
        digests = {path: sha256(Path(path)) for path in shards["train"]}
    about = _index(recipe, folder, skipped) if recipe.tokens.on_the_fly else None
    if skipped:
        listed = ", ".join(f"{count} × {reason}" for reason, count in sorted(skipped.items()))
        say(f"tokens: skipped {sum(skipped.values())} samples ({listed}); see {folder.skipped('tokens')}")
    write_json(folder.tokens, {**shards, "pretokenized": digests, "on_the_fly": about})
    result = _check(recipe, folder, tokenizer)
    indexed = [] if about is None else [folder.image_index.name]
    outputs = (folder.tokens.name, folder.reconstructions.name, *indexed, *written)
    return Outcome({**result, "skipped": dict(sorted(skipped.items()))}, outputs)


def token_data(folder: RunFolder, split: str) -> TokenData | None:
    """Open a split's token shards; return None if it has none.

    Raises:
        RearkitError: the stage has not run.
        DataError: a shard is missing or damaged.
    """
    shards = _listing(folder)[split]
    # Absolute paths, of shards made elsewhere, stay as they are when they are joined to a folder.
    return TokenData.from_shards([folder.stage("tokens") / name for name in shards]) if shards else None


def training_data(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer) -> TokenData | OnTheFly:
    """Open the training tokens, or the images from which they are made during training. All ranks must call this.

    Raises:
        RearkitError: the stage has not run.
        DataError: something is missing, or more is damaged than the recipe allows.
    """
    if recipe.tokens.on_the_fly:
        return _on_the_fly(recipe, folder, tokenizer, "train")
    place = folder.stage("tokens")
    listing = _listing(folder)
    written = (folder.done("tokens") or {}).get("outputs", {})
    digests = {place / name: listing["pretokenized"].get(name) or written[name]["sha256"] for name in listing["train"]}
    max_bad_share = recipe.data.max_bad_share
    # Hashed once, by the first rank, and before training: damage would otherwise only show as a worse model.
    whole = distributed.from_main(lambda: whole_shards(digests, max_bad_share, folder.skipped("train")))
    return TokenData.from_shards(whole)


def _on_the_fly(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, stage: str) -> OnTheFly:
    """Open the images that are tokenized during training, for a stage."""
    table = recipe.tokens
    how = read_at(table.augment, decoding_of(recipe, square_side(tokenizer)))
    images = open_split(recipe, folder, "train", how, stage)
    counts = dict(zip(images.shards, _listing(folder)["on_the_fly"]["images"], strict=True))
    bad = images.budget()
    bad.expected = sum(counts.values()) // distributed.world_size()  # each rank counts its own share of an epoch
    # What is read ahead may be of the next window, while another process is still in the one before.
    cache = ShardCache(folder.copies(stage), 3 * table.shuffle_shards, images.access.retry)
    reader = ImageReader(ImageIndex.open(folder.image_index, counts), cache, how)
    return OnTheFly(reader, tokenizer, table, recipe.train_seed, bad)


def _listing(folder: RunFolder) -> dict[str, Any]:
    shards: dict[str, Any] | None = read_json(folder.tokens)
    if shards is None:
        raise RearkitError(f"{folder.stage('tokens')}: no token shards yet; run: python -m rearkit tokens RECIPE")
    return shards


def _tokenize_split(
    recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, split: str, skipped: Counter[str]
) -> list[str]:
    """Write the token shards of a split that do not exist yet, on all ranks; return the names of all."""
    table = recipe.tokens
    if split == "train" and (table.pretokenized is not None or table.on_the_fly):
        return []
    # Held-out tokens are for measuring, on the images as they are.
    augment = table.augment if split == "train" else "none"
    how = read_at(augment, decoding_of(recipe, square_side(tokenizer)))
    images = open_split(recipe, folder, split, how, "tokens")
    names, reasons = write_token_shards(tokenizer, images, augment, table.batch, folder.stage("tokens"))
    skipped.update(reasons)
    distributed.from_main(lambda: keep_counts(folder, images))
    return names


def _index(recipe: Recipe, folder: RunFolder, skipped: Counter[str]) -> dict[str, Any]:
    """Index the training images; return what the tokens made from them depend on, besides the tokenizer."""
    # Images are only located and not decoded, so the size does not matter.
    images = open_split(recipe, folder, "train", 0, "tokens")
    bad = images.budget()
    counts = write_index(folder.image_index, images.shards, images.num_classes, bad, images.access)
    keep_counts(folder, images)
    skipped.update(bad.reasons)
    say(f"tokens: {sum(counts.values())} training images, to be tokenized while training")
    done = folder.done("data")
    return {
        "images": list(counts.values()),
        # The index holds positions but no pixels, so it could stay the same when the images change.
        "data": None if done is None else done["digest"],
        "augment": recipe.tokens.augment,
        "shuffle_shards": recipe.tokens.shuffle_shards,
    }


def _pretokenized(folder: str) -> list[str]:
    """Return the absolute paths of token shards made elsewhere."""
    found = sorted(str(path.resolve()) for path in tars_in(Path(folder)))
    if not found:
        raise DataError(f"[tokens] pretokenized: {folder}: no token shards; see: python -m rearkit tokens --from-jsonl")
    return found


def _check(recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer) -> dict[str, Any]:
    """Decode a sample of the written tokens, and raise DataError if they are worse than the recipe allows."""
    table = recipe.tokens
    train = token_data(folder, "train")
    held_out = token_data(folder, "held-out")
    total = 0 if train is None else len(train)
    originals: ImageSet | None = None
    if table.on_the_fly:
        data = _on_the_fly(recipe, folder, tokenizer, "tokens")
        total = len(data)
        samples = data.read(drawn(total, table.check_images))
        tokens, classes = data.to_tokens(samples, module_device(tokenizer))
        train = TokenData.from_arrays(tokens.cpu(), classes.cpu())
        originals = ImageSet(samples.content, classes.cpu())
    if train is None:
        raise DataError("[data.source]: no training images, and no [tokens] pretokenized")
    if train.num_tokens != tokenizer.num_tokens:
        raise DataError(
            f"the token shards have {train.num_tokens} tokens an image, the tokenizer {tokenizer.num_tokens}"
        )
    # All of them, since another codebook, or damage, may show late in one shard alone.
    if table.pretokenized is not None:
        train.check_codes(tokenizer.codebook_size)
    use, perplexity = codebook_usage(train, tokenizer.codebook_size)
    sample, _ = train.take(drawn(len(train), table.check_images))
    result: dict[str, Any] = {
        "train_tokens": total * train.num_tokens,
        "train_views": total,
        "codebook_use": use,
        "perplexity": perplexity,
        "survival": survival(tokenizer, sample, table.batch),
    }
    say(f"tokens: {use:.1%} of {tokenizer.codebook_size} codes in use, perplexity {perplexity:.1f}")
    say(f"tokens: {result['survival']:.1%} of training tokens come back from decoding and encoding again")
    split = "held-out" if held_out is not None else "train"
    # Of shards made elsewhere, the order of the images is unknown, so they cannot be compared with images.
    if held_out is not None or table.pretokenized is None:
        images, written = (originals, train) if originals and held_out is None else (None, held_out or train)
        if images is None:
            images, written = _originals(recipe, folder, tokenizer, split, written)
        ratio = compare(tokenizer, written, images, table.batch, folder.reconstructions)
        say(f"tokens: {ratio:.2f} dB PSNR of {len(images)} {split} images decoded from the written shards")
        result |= {"checked_split": split, "checked_images": len(images), "psnr": ratio}
    else:
        show_decoded(tokenizer, train, folder.reconstructions)
    # Last, so that the picture and the printed figures are there to look at if a floor is missed.
    judge(recipe, folder, result)
    return result


def judge(recipe: Recipe, folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Compare what was found of written tokens with the recipe's floors; images are not always compared.

    Raises:
        DataError: a floor is missed.
    """
    table = recipe.tokens
    floors = (("min_codebook_use", "codebook_use", table.min_codebook_use), ("min_psnr", "psnr", table.min_psnr))
    for key, figure, floor in floors:
        if figure in result and not result[figure] >= floor:  # NaN is below any
            see = folder.reconstructions
            raise DataError(f"[tokens] {key} = {floor}, but the written tokens reach {result[figure]:.3f}; see {see}")


def _originals(
    recipe: Recipe, folder: RunFolder, tokenizer: Tokenizer, split: str, data: TokenData
) -> tuple[ImageSet, TokenData]:
    """Return some images from all over a split as they were tokenized, the first view of each, and their tokens."""
    size = square_side(tokenizer)
    augment = recipe.tokens.augment if split == "train" else "none"
    images = open_split(recipe, folder, split, read_at(augment, decoding_of(recipe, size)), "tokens")
    limit = recipe.tokens.check_images
    # Places in a shard of images are places in its shard of tokens only where no image was skipped.
    starts = {
        shard: start
        for shard, start, count in zip(images.shards, data.starts, np.diff(data.starts) // VIEWS[augment], strict=False)
        if images.count_of(shard) == count
    }
    if starts:
        part = attrs.evolve(images, shards={shard: images.shards[shard] for shard in starts}).part(limit)
        only = part.access.only or {shard: range(part.count_of(shard)) for shard in part.shards}
        rows = [starts[shard] + VIEWS[augment] * place for shard in part.shards for place in sorted(only[shard])]
        read = part.all()
    else:
        read = ImageSet.of(itertools.islice(images.read(), limit), size)
        rows = [VIEWS[augment] * place for place in range(len(read))]
    first = torch.stack([views(image, augment, size)[0] for image in read.images])
    return attrs.evolve(read, images=first), TokenData.from_arrays(*data.take(rows))


def tables(recipe: Recipe, folder: RunFolder | None) -> Mapping[str, Any]:
    """Return the tables that the token shards depend on, and sizes and times of shards made elsewhere."""
    # Not their hashes: this is asked for at every start, and the shards may be large.
    found = tars_in(Path(recipe.tokens.pretokenized)) if recipe.tokens.pretokenized is not None else ()
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in found}
    return {"tokens": recipe.tokens, "pretokenized": stamps}


STAGE = Stage("tokens", ("data", "tokenizer"), tables, run, all_ranks=True, uses=("tokenizer",), judge=judge)
