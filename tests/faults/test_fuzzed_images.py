"""Image files that are damaged, too large, no images, or would start a program: an image, or a reason."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Case, command, damaged, fuzz, inline
from ledger import Ledger, Outcome
from small_runs import encoded

from rearkit.data import convert
from rearkit.data.bad_samples import BadSamples, Unusable
from rearkit.data.decoding import Decoding, decoded
from rearkit.data.image_shards import read_images

pytestmark = pytest.mark.slow


def image(draw: random.Random, folder: Path) -> Case:
    kind = draw.choice(["png", "jpeg", "gif", "webp", "bmp", "tiff", "jpeg2000", "tga", "ppm", "avif"])
    content, hows = encoded(draw.randrange(4), kind, draw.choice([8, 40])), []
    for _ in range(draw.choice([1, 1, 3, 9])):
        how, content = damaged(draw, content)
        hows.append(how)

    def work() -> Outcome:
        found = decoded(
            content, Decoding(16, draw.choice(["center", "adm"]), orientation=draw.choice(["stored", "exif"]))
        )
        return "held" if found.shape == (3, 16, 16) and str(found.dtype) == "torch.uint8" else "silent"

    return f"{kind}: {', '.join(hows)}", work


def hostile_image(draw: random.Random, folder: Path) -> Case:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(started) (w) file closefile showpage\n"
    width, height = draw.choice(
        [(1, 10_000), (1, 100_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1), (0, 9), (65_535, 2)]
    )
    big = encoded(0, "png")[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + encoded(0, "png")[24:]
    contents = {"eps": eps, "pdf": b"%PDF-1.4\n" + eps, "empty": b"", "text": b"hello", "html": b"<html>", "bomb": big,
                "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://x.invalid/'/></svg>"}  # fmt: skip
    what = draw.choice([*contents, "fifo", "dangling", "loop", "folder", "unreadable", "socket"])
    suffix = draw.choice(["png", "jpg", "webp", "gif", "PNG", "eps"])
    for owner in "ab":
        (folder / "photos" / owner).mkdir(parents=True)
        (folder / "photos" / owner / "1.png").write_bytes(encoded(ord(owner), "png"))
    odd = folder / "photos" / "a" / f"odd{draw.randrange(4)}.{suffix}"
    if what in contents:
        odd.write_bytes(contents[what])
    elif what == "fifo":
        os.mkfifo(odd)
    elif what in ("dangling", "loop"):
        odd.symlink_to("nowhere" if what == "dangling" else odd.name)
    elif what == "folder":
        odd.mkdir()
    elif what == "unreadable":
        odd.write_bytes(encoded(0, "png"))
        odd.chmod(0)
    else:
        odd.symlink_to("/dev/zero")

    def work() -> Outcome:
        if what in contents:
            try:
                decoded(contents[what], Decoding(16))
                return "let in"
            except Unusable:
                pass
        code, said = command("data", "--from-folder", "photos", "--to", "shards", "--workers", "1")
        if code != 0:
            return "held"
        bad = BadSamples(1.0, 0)
        read = list(read_images({str(p): None for p in (folder / "shards").glob("*.tar")}, 8, 5, bad))
        usable = 2 + (what == "unreadable" and suffix != "eps")
        told = bad.count or "ignored" in said or suffix == "eps" or what == "folder"
        return "held" if len(read) == usable and (told or what == "unreadable") else "silent"

    return f"{what} {odd.name} {width}x{height}", work


@pytest.mark.parametrize("build", [image, hostile_image], ids=lambda build: build.__name__)
def test_an_image_is_decoded_or_counted_with_a_reason(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "in_processes", inline)
    # What is imported now is not what a fault has started.
    decoded(encoded(0, "png"), Decoding(4))
    ledger = Ledger()
    fuzz(ledger, f"data, {build.__name__.replace('_', ' ')}", tmp_path, build)
    ledger.check()
