"""Token files, labels and tars that are damaged or made to do harm: read as they were written, or refused."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import Case, command, damaged, fuzz, hash_of, inline
from ledger import Ledger, Outcome
from small_runs import encoded, pixels
from tars import write_tar

from rearkit.data import convert, convert_tokens
from rearkit.data.bad_samples import BadSamples
from rearkit.data.image_shards import read_images
from rearkit.data.label_files import read_labels
from rearkit.data.token_shards import TokenData
from rearkit.data.token_writing import write_token_shard

pytestmark = pytest.mark.slow

VALUES = ["-1", "65536", "2147483648", "8589934592", "1e3", "1.0", "1.5", "true", "null", '"5"', "[1]", "{}", "NaN",
"Infinity",
          "-0", "01", "9" * 400, "1e400", "", "\u0663", "1_0", " 7 ", "0x5", "+3", "5.", "\x1b[31m", "\x00", "६",
          "1e-5"]  # fmt: skip


def members(path: Path) -> list[tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return archive.getmembers()


def strictly(text: bytes) -> tuple[int, list[int]] | None:
    """A line of a token file as Python's own reader has it; None where it is none."""

    def whole(value: Any, most: int) -> bool:
        return type(value) is int and 0 <= value <= most

    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        row = json.loads(text.decode(), parse_constant=refuse)
        label, tokens = row["class_id"], row["tokens"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = whole(label, 2**31 - 1) and isinstance(tokens, list) and tokens and all(whole(one, 65535) for one in tokens)
    return (label, tokens) if good else None


def jsonl(draw: random.Random, folder: Path) -> Case:
    lines = [json.dumps({"class_id": draw.randrange(9), "tokens": [draw.randrange(64) for _ in range(4)]}).encode()
             for _ in range(5)]  # fmt: skip
    if draw.random() < 0.6:
        place, literal = draw.randrange(5), draw.choice(VALUES)
        label, token = (literal, "3") if draw.random() < 0.5 else ("3", literal)
        odd = ["{}", "[]", "[" * 3000, '{"class_id": 1}', '{"tokens": [1,2,3,4]}', "null",
        '{"class_id":1,"tokens":[]}',
               '{"class_id":1,"tokens":"1234"}', '{"class_id":1,"class_id":2,"tokens":[1,2,3,4]}']  # fmt: skip
        text = f'{{"class_id": {label}, "tokens": [1, {token}, 2, 3]}}' if draw.random() < 0.8 else draw.choice(odd)
        lines[place] = text.encode()
        detail, content = text, b"\n".join(lines) + b"\n"
    else:
        detail, content = damaged(draw, b"\n".join(lines) + b"\n")
    (folder / "tokens.jsonl").write_bytes(content)

    def work() -> Outcome:
        code, _ = command("tokens", "--from-jsonl", "tokens.jsonl", "--to", "shards", "--workers", "1")
        if code != 0:
            return "held"
        rows = [strictly(line.removeprefix(b"\xef\xbb\xbf")) for line in content.split(b"\n") if line.strip()]
        found = TokenData.from_shards(sorted((folder / "shards").glob("*.tar")))
        tokens, classes = found.take(range(len(found)))
        read = list(zip(classes.tolist(), tokens.tolist(), strict=True))
        return "held" if read == rows else "silent"

    return detail, work


def token_shard(draw: random.Random, folder: Path) -> Case:
    tokens = np.array([[draw.randrange(64) for _ in range(4)] for _ in range(6)])
    classes = np.arange(6)
    path = folder / "train-000000.tar"
    write_token_shard(path, tokens, classes, {"source": "x"})
    content = path.read_bytes()
    # Of what the arrays hold nothing tells what it was, beside the checksums of a run; of the headers all does.
    arrays = [(one.offset_data + 128, one.offset_data + one.size) for one in members(path) if one.name.endswith("npy")]
    detail, changed = damaged(draw, content)
    for start, end in arrays:
        if len(changed) == len(content):
            changed = changed[:start] + content[start:end] + changed[end:]
    if draw.random() < 0.2:
        value, row = draw.choice([64, 65535, 1000]), draw.randrange(6)
        tokens[row, 2] = value
        write_token_shard(path, tokens, classes, {})
        detail, changed = f"token {value} in row {row}", path.read_bytes()
    path.write_bytes(changed)

    def work() -> Outcome:
        found = TokenData.from_shards([path])
        found.check_codes(64)
        read, labels = found.take(range(len(found)))
        return "held" if read.tolist() == tokens.tolist() and labels.tolist() == classes.tolist() else "silent"

    return detail, work


def labels(draw: random.Random, folder: Path) -> Case:
    images = [f"img{index}.png" for index in range(6)]
    separator = draw.choice([",", "\t", " ", ";"])
    lines = [f"{name}{separator}{draw.choice(['cat', 'dog', '3', '1'])}" for name in images]
    lines = lines if draw.random() < 0.7 else [str(draw.randrange(1, 4)) for _ in images]
    place = draw.randrange(6)
    how = draw.choice(["value", "gone", "twice", "bytes", "long", "quote"])
    before, middle, _ = lines[place].rpartition(separator)
    lines[place] = {
        "value": before + middle + draw.choice(VALUES),
        "long": "x" * 100_000,
        "quote": lines[place] + '"',
    }.get(how, lines[place])
    lines = [line for line in lines if how != "gone" or line != lines[place]] + (
        lines[place:][:1] if how == "twice" else []
    )
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    detail = f"{how} in line {place} {hash_of(content)}"
    if how == "bytes":
        detail, content = damaged(draw, content)
    (folder / "labels.csv").write_bytes(content)

    def work() -> Outcome:
        found, names = read_labels(folder / "labels.csv", images, "images")
        text = content.decode("utf-8-sig").splitlines()
        for position, image in enumerate(images):
            said = names[found[image]].replace('"', "").strip()
            rows = [line for line in text if image in line] or [[line for line in text if line.strip()][position]]
            told = rows[0].replace('"', "").strip().rpartition(separator)[2].strip()
            same = told == said or (told.isdecimal() and said.isdecimal() and int(told) == int(said))
            if not same or len(rows) > 1:
                return "silent"
        return "held" if set(found) == set(images) else "silent"

    return detail, work


def shard(draw: random.Random, folder: Path) -> Case:
    written = [str(draw.randrange(5)).encode() for _ in range(5)]
    suffix, place = draw.choice(["cls", "json", "txt"]), draw.randrange(5)
    structural = draw.random() < 0.5
    if not structural:
        literal = draw.choice(VALUES)
        written[place] = literal.encode()
    inner = [one if suffix != "json" else b'{"label": ' + one + b"}" for one in written]
    parts = [one for i in range(5) for one in ((f"{i}.png", encoded(i, "png")), (f"{i}.{suffix}", inner[i]))]
    path = write_tar(folder / "x.tar", parts)
    detail = f"{suffix}: {written[place]!r:.60} in {place}"
    if structural:
        content = bytearray(path.read_bytes())
        headers = [one.offset for one in members(path)]
        start = draw.choice(headers)
        how, header = damaged(draw, bytes(content[start : start + 512]))
        content[start : start + 512] = header
        path.write_bytes(content)
        detail = f"{suffix}: header at {start}: {how}"

    def work() -> Outcome:
        bad = BadSamples(1.0, 5)
        read = list(read_images({str(path): 5}, 8, 5, bad))
        for one in read:
            index = int(one.key) if one.key.isdecimal() and len(one.key) == 1 else 9
            said = written[index].decode().strip() if index < 5 else ""
            # Digits of other scripts and signs keep their value.
            right = said.lstrip("+-").isdecimal() and int(said) == one.label
            if not right or not np.array_equal(one.image.permute(1, 2, 0).numpy(), pixels(index)):
                return "silent"
        # What is not there was counted.
        return "held" if len(read) + bad.count >= 5 else "silent"

    return detail, work


def class_tar(draw: random.Random, folder: Path) -> Case:
    names = [f"{owner}/{index}.png" for owner in "ab" for index in range(3)]
    contents = {name: encoded(index, "png") for index, name in enumerate(names)}
    nested = draw.random() < 0.3
    if nested:
        for owner in "ab":
            write_tar(folder / f"{owner}.tar", [(n[2:], contents[n]) for n in names if n.startswith(owner)])
        path = write_tar(folder / "x.tar", [(f"{o}.tar", (folder / f"{o}.tar").read_bytes()) for o in "ab"])
    else:
        path = write_tar(folder / "x.tar", list(contents.items()))
    how = draw.choice(["damage", "damage", "link", "name", "long", "device", "pax"])
    if how == "damage":
        content = bytearray(path.read_bytes())
        start = draw.choice([one.offset for one in members(path)])
        detail, header = damaged(draw, bytes(content[start : start + 512]))
        content[start : start + 512] = header
        path.write_bytes(content)
    else:
        detail = f"{how} {draw.randrange(1000)}"
        strange = {"name": draw.choice(["../../evil.png", "/tmp/evil.png", "a/../../evil.png", "a/\x1b[31m.png",
        "a/\n.png"]),
                   "long": "a/" + "x" * draw.randrange(100, 5000) + ".png"}.get(how, "a/odd.png")  # fmt: skip
        info = tarfile.TarInfo(strange)
        kinds = {
            "link": draw.choice([tarfile.SYMTYPE, tarfile.LNKTYPE]),
            "device": draw.choice([tarfile.CHRTYPE, tarfile.FIFOTYPE]),
        }
        info.type, info.linkname = kinds.get(how, tarfile.REGTYPE), draw.choice(["/etc/passwd", "odd.png", "../x"])
        if how == "pax":
            info.pax_headers = {
                "comment": "x" * draw.randrange(1, 200_000),
                draw.choice(["size", "path", "mtime"]): "9" * 30,
            }
        info.size = len(encoded(9, "png")) if info.type == tarfile.REGTYPE else 0
        with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(info, io.BytesIO(encoded(9, "png")) if info.size else None)
    extra = how not in ("damage",)

    def work() -> Outcome:
        code, _ = command("data", "--from-folder", "x.tar", "--to", "shards", "--workers", "1")
        if code != 0:
            return "held"
        read = list(read_images({str(p): None for p in (folder / "shards").glob("*.tar")}, 8, 5, BadSamples(1.0, 0)))
        expected = {name[:-4]: (0 if name[0] == "a" else 1, name) for name in names}
        right = [
            one
            for one in read
            if one.key in expected
            and expected[one.key][0] == one.label
            and np.array_equal(one.image.permute(1, 2, 0).numpy(), pixels(names.index(expected[one.key][1])))
        ]
        return "held" if len(right) == 6 and len(read) <= 6 + extra else "silent"

    return f"{'nested ' * nested}{detail}", work


CASES = [jsonl, token_shard, labels, shard, class_tar]


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_data_are_read_as_they_were_written_or_refused(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this process: what a fault does is then seen, and there is time for more of them.
    for module in (convert, convert_tokens):
        monkeypatch.setattr(module, "in_processes", inline)
    ledger = Ledger()
    fuzz(ledger, f"data, {build.__name__.replace('_', ' ')}", tmp_path, build)
    ledger.check()
