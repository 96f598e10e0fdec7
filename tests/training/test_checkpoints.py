from __future__ import annotations

import contextlib
import errno
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rearkit.errors import StorageError
from rearkit.training.checkpoints import MANIFEST, Checkpoints, Write

STATE = "state.bin"


def writer(value: int, error: BaseException | None = None) -> Write:
    """Write a number into a file of 20 kB, or fail half-way."""

    def write(folder: Path) -> tuple[Path, dict[str, Any]]:
        path = folder / STATE
        with path.open("w") as file:
            file.write(f"{value:<10000}")
            file.flush()
            if error is not None:
                raise error
            file.write("x" * 10_000)
        return path, {"value": value}

    return write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def saved(folder: Path, *steps: int, keep: int = 9, keep_every: int = 0) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep, keep_every)
    for step in steps:
        checkpoints.save(step, writer(step))
    return checkpoints


def found(checkpoints: Checkpoints) -> int | None:
    """The step that a run would resume from."""
    latest = checkpoints.latest()
    if latest is None:
        return None
    assert int((latest.folder / STATE).read_text()[:10_000]) == latest.step == latest.facts["value"]
    return latest.step


@given(st.lists(st.integers(0, 10**8 - 1), min_size=1, max_size=6, unique=True).map(sorted), st.integers(1, 4))
def test_the_latest_is_found_and_so_many_are_kept(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = saved(folder, *steps, keep=keep)
    assert found(checkpoints) == steps[-1]
    assert names(folder) == [f"step-{step:08d}" for step in steps[-keep:]]


@given(st.integers(1, 3), st.integers(0, 4))
def test_those_at_multiples_are_kept_beside_the_latest(
    tmp_path_factory: pytest.TempPathFactory, keep: int, keep_every: int
) -> None:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    saved(folder, *range(1, 10), keep=keep, keep_every=keep_every)
    expected = {step for step in range(1, 10) if step > 9 - keep or (keep_every and step % keep_every == 0)}
    assert names(folder) == [f"step-{step:08d}" for step in sorted(expected)]


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "missing", 2).latest() is None
    assert Checkpoints(tmp_path, 2).latest() is None


DAMAGE = {
    "truncated": lambda folder: (folder / STATE).write_text("x"),
    "changed": lambda folder: (folder / STATE).write_text("y" * 20_000),
    "missing a file": lambda folder: (folder / STATE).unlink(),
    "without manifest": lambda folder: (folder / MANIFEST).unlink(),
    "of another version": lambda folder: (folder / MANIFEST).write_text('{"step": 3, "files": {}}'),
    "with half a manifest": lambda folder: (folder / MANIFEST).write_text('{"step": 3, "fi'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_its_reason_for_the_one_before(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3)
    DAMAGE[damage](tmp_path / "step-00000003")
    assert found(checkpoints) == 2
    output = capsys.readouterr().out
    assert "step-00000003 is skipped: " in output
    assert "step-00000002 is skipped" not in output
    for step in (1, 2):
        DAMAGE[damage](tmp_path / f"step-0000000{step}")
    assert checkpoints.latest() is None


def test_what_is_no_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    for name in ("step-later", "steps-00000009", ".step-00000009.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000007").write_text("a file")
    assert found(checkpoints) == 5


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("mine"), KeyboardInterrupt()]
)
def test_a_save_that_fails_leaves_the_earlier_ones_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        checkpoints.save(3, writer(3, error))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert found(checkpoints) == 2


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_the_system_refuses_is_told_with_its_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(StorageError, match=r"step-00000002: the disk is full"), largest_file(10_000):
        checkpoints.save(2, writer(2))
    assert found(checkpoints) == 1


def test_a_save_may_come_twice_and_over_what_a_killed_one_left(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-00000002.tmp"
    leftover.mkdir(parents=True)
    (leftover / STATE).write_text("half")
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.save(2, writer(2))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert found(checkpoints) == 2


def test_the_manifest_lists_step_and_every_file(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    manifest = json.loads((tmp_path / "step-00000004" / MANIFEST).read_text())
    assert manifest["step"] == 4
    assert set(manifest["files"]) == {STATE}


def test_a_file_that_its_writer_keeps_to_itself_gets_the_permissions_of_any_other(tmp_path: Path) -> None:
    def write(folder: Path) -> tuple[Path, dict[str, Any]]:
        path, facts = writer(1)(folder)
        path.chmod(0o600)  # as safetensors does
        return path, facts

    Checkpoints(tmp_path, 2).save(1, write)
    (tmp_path / "any").write_text("")
    modes = {path.stat().st_mode for path in (tmp_path / "step-00000001" / STATE, tmp_path / "any")}
    assert len(modes) == 1


def test_one_that_cannot_be_used_does_not_count_as_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 5, 8)
    for step in (5, 8):
        (tmp_path / f"step-{step:08d}" / STATE).write_text("damaged")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert found(checkpoints) == 1
    for step in (2, 3, 6):
        checkpoints.save(step, writer(step))
        assert found(checkpoints) == step
    checkpoints.save(8, writer(8))
    assert names(tmp_path) == [f"step-{step:08d}" for step in (5, 6, 8)]
    assert found(checkpoints) == 8


def test_no_flipped_bit_of_a_manifest_gives_another_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    manifest = tmp_path / "step-00000002" / MANIFEST
    whole = manifest.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        manifest.write_bytes(changed)
        latest = checkpoints.find()
        assert latest is not None
        assert (latest.step, latest.facts) in [(1, {"value": 1}), (2, {"value": 2})]


def test_a_checkpoint_of_another_recipe_or_step_or_with_foreign_files_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Checkpoints(tmp_path, 9, owner="mine")
    mine.save(1, writer(1))
    mine.save(2, writer(2))
    Checkpoints(tmp_path, 9, owner="theirs").save(3, writer(3))
    (tmp_path / "step-00000002").rename(tmp_path / "step-00000004")
    assert found(mine) == 1
    told = capsys.readouterr().out
    assert "step-00000003 is skipped: it is of another recipe" in told
    assert "step-00000004 is skipped: it is of step 2" in told
    (tmp_path / "step-00000001" / "state-9.safetensors").write_text("x")
    assert found(mine) is None
    assert "state-9.safetensors is none of its files" in capsys.readouterr().out


def test_a_training_that_goes_on_adopts_checkpoints_and_leaves_them_to_the_first(tmp_path: Path) -> None:
    mine, other = (Checkpoints(tmp_path, 9, owner=name) for name in ("mine", "other"))
    mine.save(1, writer(1))
    assert found(other) is None
    mine.adopt("other")
    assert found(other) == found(mine) == 1
    assert mine.owners() == ["mine", "other"]


def test_checkpoints_of_earlier_versions_have_no_owner_and_are_anybodys(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    assert found(Checkpoints(tmp_path, 9, owner="mine")) == 1
