"""Published token files into token shards: the same by any number of processes, resumable, bad lines by number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rearkit.data import convert_tokens
from rearkit.data.convert_tokens import jsonl_to_token_shards
from rearkit.data.token_shards import TokenData, read_meta
from rearkit.data.token_writing import write_token_shard
from rearkit.errors import DataError

ROWS = [{"class_id": i % 7, "tokens": [i, i + 1, 65535 - i]} for i in range(46)]
GOOD = [json.dumps(row).encode() for row in ROWS]


def write(path: Path, lines: list[bytes], end: bytes = b"\n") -> Path:
    path.write_bytes(b"".join(line + end for line in lines))
    return path


def straightforward(folder: Path, size: int) -> list[bytes]:
    """The shards as one process makes them of all rows in memory."""
    for index, start in enumerate(range(0, len(ROWS), size)):
        part = ROWS[start : start + size]
        tokens, classes = np.array([row["tokens"] for row in part]), np.array([row["class_id"] for row in part])
        write_token_shard(folder / f"{index:06d}.tar", tokens, classes, {"source": "t.jsonl"})
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize(("workers", "size"), [(1, 10), (2, 1), (2, 23), (3, 10), (3, 46), (None, 10), (None, 100)])
def test_the_shards_are_the_same_by_any_number_of_processes(workers: int | None, size: int, tmp_path: Path) -> None:
    shards = jsonl_to_token_shards(write(tmp_path / "t.jsonl", GOOD), tmp_path / "out", size, workers)
    assert [shard.read_bytes() for shard in shards] == straightforward(tmp_path / "plain", size)
    tokens, classes = TokenData.from_shards(shards).take(range(46))
    assert tokens.tolist() == [row["tokens"] for row in ROWS]
    assert classes.tolist() == [row["class_id"] for row in ROWS]
    assert read_meta(shards[0]) == {"source": "t.jsonl"}


MARK = b"\xef\xbb\xbf"
KINDS = {
    "no last line end": b"\n".join(GOOD),
    "blank last line": b"\n".join([*GOOD, b"", b""]),
    "blank lines": b"\n\n\n" + b"\n \t\n".join(GOOD),
    "mark": MARK + b"\n".join(GOOD),
    "mark on a line of its own": MARK + b"\n" + b"\n".join(GOOD),
    "marked files put together": MARK + b"\n".join(GOOD[:7]) + b"\n" + MARK + b"\n".join(GOOD[7:]) + b"\n",
    "windows": MARK + b"\r\n".join([*GOOD, b"", b""]),
    "spaces": b"\n".join(b"  " + line + b"  " for line in GOOD),
    "other keys": b"\n".join(b'{"a": "\xc3\xa9", "b": true, ' + line[1:] for line in GOOD),
}


@pytest.mark.parametrize("kind", KINDS)
def test_blank_lines_and_marks_are_skipped(kind: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(KINDS[kind])
    shards = jsonl_to_token_shards(tmp_path / "t.jsonl", tmp_path / "out", 10, 2)
    assert [shard.read_bytes() for shard in shards] == straightforward(tmp_path / "plain", 10)


BAD = [
    b'{"class_id": 1, "tokens": [1, 2',
    b"nothing",
    b"\xff\xfe",
    b"[1, 2, 3]",
    b"5",
    b"null",
    b'{"class_id": 1}',
    b'{"tokens": [1, 2, 3]}',
    b'{"class_id": 1, "tokens": [1, 2, 3]} {"class_id": 1, "tokens": [1, 2, 3]}',
    *(b'{"class_id": %s, "tokens": [1, 2, 3]}' % label
      for label in (b"-1", b"1.7", b"1.0", b'"1"', b"true", b"null", b"[1]", b"2147483648", b"1e30", b"9" * 40)),
    *(b'{"class_id": 1, "tokens": [1, %s, 3]}' % token
      for token in (b"-1", b"65536", b"2.5", b"2.0", b"true", b"false", b"null", b'"2"', b"[2]", b"9" * 40, b"NaN")),
    *(b'{"class_id": 1, "tokens": %s}' % tokens
      for tokens in (b"[]", b"[1, 2]", b"[1, 2, 3, 4]", b"7", b"null", b'"123"', b'{"1": 2}', b"[[1, 2, 3]]",
                     b"[true, true, true]")),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_line_is_told_by_its_number(bad: bytes, tmp_path: Path) -> None:
    # Blank lines count, as they do in an editor.
    source = write(tmp_path / "t.jsonl", [MARK, *GOOD[:38], b"", bad, *GOOD])
    with pytest.raises(DataError, match=r"t\.jsonl, line 41: ") as told:
        jsonl_to_token_shards(source, tmp_path / "out", 8, 2)
    assert "\n" not in str(told.value) and len(str(told.value)) < 250
    assert "line 1 column" not in str(told.value)


def test_the_first_of_several_bad_lines_is_told(tmp_path: Path) -> None:
    lines = [*GOOD]
    lines[40], lines[8], lines[9] = BAD[0], BAD[1], BAD[2]
    with pytest.raises(DataError, match=r"t\.jsonl, line 9: "):
        jsonl_to_token_shards(write(tmp_path / "t.jsonl", lines), tmp_path / "out", 4, 3)


@pytest.mark.parametrize("content", [b"", b"\n\n \r\n", MARK])
def test_a_file_without_lines_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(DataError, match="no lines"):
        jsonl_to_token_shards(tmp_path / "t.jsonl", tmp_path / "out")


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_tokens, "LONGEST_LINE", 500)
    with pytest.raises(DataError, match=r"t\.jsonl, line 3: .*one image a line"):
        jsonl_to_token_shards(write(tmp_path / "t.jsonl", [*GOOD[:2], b"1" * 501]), tmp_path / "out")


def test_a_line_that_was_mended_lets_the_conversion_go_on(tmp_path: Path) -> None:
    lines = [*GOOD[:40], GOOD[40].replace(b" ", b"x", 1), *GOOD[41:]]
    source = write(tmp_path / "t.jsonl", lines)
    with pytest.raises(DataError, match="line 41"):
        jsonl_to_token_shards(source, tmp_path / "out", 10, 2)
    write(source, GOOD)
    shards = jsonl_to_token_shards(source, tmp_path / "out", 10, 2)
    assert [shard.read_bytes() for shard in shards] == straightforward(tmp_path / "plain", 10)


def test_lines_that_were_edited_are_converted_again_and_no_others(tmp_path: Path) -> None:
    source = write(tmp_path / "t.jsonl", [*GOOD[:40], GOOD[40].replace(b'"class_id": 5', b'"class_id": 6'), *GOOD[41:]])
    status = source.stat()
    before = {path: path.stat().st_mtime_ns for path in jsonl_to_token_shards(source, tmp_path / "out", 10, 1)}
    write(source, GOOD)
    # Neither size nor time tells.
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert source.stat().st_size == status.st_size
    shards = jsonl_to_token_shards(source, tmp_path / "out", 10, 1)
    assert [shard.read_bytes() for shard in shards] == straightforward(tmp_path / "plain", 10)
    assert [path for path in shards if path.stat().st_mtime_ns != before[path]] == [shards[4]]


SCRIPT = """
import pathlib, sys, time
from rearkit.data import convert_tokens
write = convert_tokens.write_token_shard
def slow(path, *rest):
    time.sleep(0.2 + 600 * (path.name > "train-000011"))
    write(path, *rest)
convert_tokens.write_token_shard = slow
convert_tokens.jsonl_to_token_shards(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), 2, 2)
"""


def test_a_conversion_that_was_killed_goes_on(tmp_path: Path) -> None:
    source, target = write(tmp_path / "t.jsonl", GOOD), tmp_path / "out"
    started = subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), str(target)])
    end = time.monotonic() + 60
    while len(list(target.glob("*.tar"))) < 5:
        assert time.monotonic() < end and started.poll() is None
        time.sleep(0.02)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    time.sleep(0.5)  # its processes have ended too: nothing is written any more
    before = {path: path.stat().st_mtime_ns for path in target.glob("*.tar")}
    assert 5 <= len(before) < 23
    shards = jsonl_to_token_shards(source, target, 2, 2)
    assert [shard.read_bytes() for shard in shards] == straightforward(tmp_path / "plain", 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(target.glob(".*.tmp"))


COMMAND = """
import signal, sys, time
# What a shell runs in the background begins with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from rearkit.cli.main import main
from rearkit.data import convert_tokens
write = convert_tokens.write_token_shard
def slow(path, *rest):
    write(path, *rest)
    time.sleep(600)
convert_tokens.write_token_shard = slow
main(["tokens", "--from-jsonl", sys.argv[1], "--to", sys.argv[2], "--workers", "2"])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_conversion_that_is_stopped_says_so_at_once(number: int, code: int, tmp_path: Path) -> None:
    source, target = write(tmp_path / "t.jsonl", GOOD), tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(source), str(target)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as started:  # fmt: skip
        end = time.monotonic() + 60
        while not list(target.glob("*.tar")):
            assert time.monotonic() < end and started.poll() is None
            time.sleep(0.02)
        # A terminal's Ctrl-C goes to all, as a scheduler's signal may.
        os.killpg(started.pid, number)
        _, told = started.communicate(timeout=30)
    assert (started.returncode, told.strip().count("\n")) == (code, 0), told
    assert "run the same command to go on" in told
    assert not (target / ".lock").exists()


def test_converting_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", GOOD)
    script = (
        "import sys; from rearkit.cli.main import cli\n"
        "cli.main(['tokens', '--from-jsonl', 't.jsonl', '--to', 'out', '--workers', '2'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "out: 1 token shards" in done.stdout
