from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rearkit.training.logs import JSONL, TrainLog, read_log
from rearkit.training.trackers import TENSORBOARD, TensorBoard


def logged(folder: Path, start: int, *steps: int) -> None:
    log = TrainLog(folder, start, [TensorBoard(folder, start)])
    for step in steps:
        log.write(step, {"loss": step / 10, "accuracy": 0.5})
    log.close()


def test_a_line_is_there_for_others_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = TrainLog(tmp_path, 0)
    log.write(10, {"loss": 1.5})
    assert read_log(tmp_path) == [{"step": 10, "loss": 1.5}]
    log.write(20, {"loss": 1.25, "lr": 1e-4})
    assert read_log(tmp_path)[1] == {"step": 20, "loss": 1.25, "lr": 1e-4}
    log.close()


def test_tensorboard_gets_every_value_at_its_step(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10, 20)
    events = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "accuracy"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.0), (20, 2.0)]


@pytest.mark.parametrize(("resumed_at", "kept"), [(0, []), (10, [10]), (25, [10, 20]), (30, [10, 20, 30])])
def test_a_resumed_run_drops_what_was_logged_beyond_its_checkpoint(
    resumed_at: int, kept: list[int], tmp_path: Path
) -> None:
    logged(tmp_path, 0, 10, 20, 30)
    log = TrainLog(tmp_path, resumed_at)
    assert [line["step"] for line in read_log(tmp_path)] == kept
    assert log.last == ({"loss": kept[-1] / 10, "accuracy": 0.5} if kept else {})
    log.write(40, {"loss": 0.0})
    log.close()
    assert [line["step"] for line in read_log(tmp_path)] == [*kept, 40]


def test_in_tensorboard_too_a_resumed_run_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10, 20, 30)
    log = TrainLog(tmp_path, 10, [TensorBoard(tmp_path, 10)])
    log.write(20, {"loss": 7.0})
    log.close()
    events = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 1.0), (20, 7.0)]


@given(st.integers(0, 120))
def test_a_log_cut_off_anywhere_reads_as_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    folder = tmp_path_factory.mktemp("log")
    lines = [{"step": step, "loss": step / 3} for step in range(1, 5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / JSONL).write_text(text[:length])
    whole = text[:length].count("\n")
    found = read_log(folder)
    assert found[:whole] == lines[:whole]
    assert found in (lines[:whole], lines[: whole + 1])  # a last line may lack its newline alone


def test_no_log_reads_as_no_lines(tmp_path: Path) -> None:
    assert read_log(tmp_path) == []
    assert read_log(tmp_path, "fit.jsonl") == []


def test_no_flipped_bit_gives_another_line(tmp_path: Path) -> None:
    path = tmp_path / JSONL
    log = TrainLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.5, "lr": 1e-4})
    log.close()
    lines, whole = read_log(tmp_path), path.read_bytes()
    for bit in range(0, 8 * len(whole), 3):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = read_log(tmp_path)
        assert len(found) >= 1 and all(line in lines for line in found)


@pytest.mark.parametrize(
    "line",
    ["[]", "7", "null", '{"loss": 1}', '{"step": "9"}', '{"step": -1}', '{"step": 1.5}', '{"step": NaN}', "\x00"],
)
def test_a_line_of_another_kind_is_passed_over_and_told(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / JSONL).write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n{{"step": 2, "loss": 1.0}}\n')
    assert [values["step"] for values in read_log(tmp_path)] == [1, 2]
    assert "1 damaged or foreign lines are passed over, such as line 2" in capsys.readouterr().out
    log = TrainLog(tmp_path, 2)
    assert log.last == {"loss": 1.0}
    log.close()
