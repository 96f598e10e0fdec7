from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit.system.checksums import (
    SUMS,
    DamagedError,
    append_checksum,
    check_sealed,
    forget,
    has_checksum,
    is_as_noted,
    note_checksum,
    noted,
    read_checked,
    read_sealed,
    seal,
    unseal,
    write_sealed,
)
from rearkit.system.files import write_json

CONTENT = {"step": 20, "lr": 1e-4, "files": {"a.bin": "ab" * 32}, "names": ["é", None, True]}


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_any_flipped_bit_and_any_cut_of_sealed_json_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, CONTENT)
    assert read_sealed(path) == CONTENT
    whole = path.read_bytes()
    broken = [flipped(whole, bit) for bit in range(8 * len(whole))] + [whole[:end] for end in range(len(whole) - 1)]
    # White space may change, and the case of an escape; nothing else.
    assert all(unseal(json_of(content)).content in (None, CONTENT) for content in broken)
    assert sum(json_of(content) is not None for content in broken) > 500  # these would have been read


def json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.floats() | st.lists(st.text()), max_size=4))
def test_whatever_json_holds_can_be_sealed(content: dict[str, Any]) -> None:
    content.pop("sha256", None)
    back = unseal(json.loads(json.dumps(seal(content))))
    assert back.sealed and json.dumps(back.content) == json.dumps(content)


def test_files_of_earlier_versions_are_read_and_damage_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    write_json(path, CONTENT)
    assert read_sealed(path) == CONTENT and not check_sealed(path).sealed
    path.write_text("[]")
    assert read_sealed(path) is None
    assert f"{path} is damaged" in capsys.readouterr().out
    path.unlink()
    assert read_sealed(path) is None
    assert capsys.readouterr().out == ""


def test_a_flipped_bit_of_a_file_with_a_checksum_at_its_end_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"some content")
    assert read_checked(path) == b"some content" and has_checksum(path) is None
    append_checksum(path)
    whole = path.read_bytes()
    assert read_checked(path) == b"some content" and has_checksum(path)
    for bit in range(8 * len(whole)):
        path.write_bytes(flipped(whole, bit))
        # One in the checksum's own words leaves the content as it was, with more behind it.
        try:
            assert read_checked(path).startswith(b"some content")
        except DamagedError as error:
            assert str(path) in str(error)
        if bit < 8 * len(b"some content"):
            assert has_checksum(path) is False


def test_files_are_compared_with_what_was_noted_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        note_checksum(tmp_path / name)
    assert noted(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert is_as_noted(tmp_path / "a")
    (tmp_path / "a").write_text("c")
    assert not is_as_noted(tmp_path / "a")
    (tmp_path / SUMS / "b.sha256").write_text("")
    assert not is_as_noted(tmp_path / "b")
    forget(tmp_path / "a")
    assert noted(tmp_path) == [tmp_path / "b"]
