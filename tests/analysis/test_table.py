from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from rearkit.analysis.table import Group, make_table
from rearkit.stages.run_folder import RunFolder

DONE = "stage.json"

SCORES = {
    "fid": 2.0,
    "inception_score": 8.0,
    "precision": None,
    "recall": None,
    "fid_floor": 1.5,
    "class_agreement": 0.5,
    "feature_space": "some features",
    "num_samples": 1000,
    "num_held_out": 500,
    "reference": "4500 training images",
}


def run(path: Path, **scores: object) -> RunFolder:
    stage = path / "evaluate"
    stage.mkdir(parents=True)
    (stage / DONE).write_text(json.dumps({"key": "", "digest": "", "outputs": {}, "result": SCORES | scores}))
    return RunFolder(path)


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    plain = [run(tmp_path / str(fid), fid=fid) for fid in (1.0, 2.0, 6.0)]
    return [Group("plain", plain, published=2.5), Group("one", [run(tmp_path / "one")]), Group("none", [])]


def test_cells_are_mean_and_standard_deviation_over_runs(groups: list[Group]) -> None:
    table = make_table(groups, "theirs")
    assert table.headings == ("", "runs", "FID ↓", "IS ↑", "class agreement ↑", "theirs")
    plain, one, none = table.text_rows()
    assert plain == ["plain", "3", f"3.00 ± {math.sqrt(7):.2f}", "8.00 ± 0.00", "50.0% ± 0.0%", "2.50"]
    assert one == ["one", "1", "2.00", "8.00", "50.0%", "–"]
    assert none == ["none", "0", "–", "–", "–", "–"]


def test_markdown_and_csv_hold_the_same_table(groups: list[Group]) -> None:
    table = make_table(groups)
    assert "| plain | 3 | 3.00 ± 2.65 | 8.00 ± 0.00 |" in table.markdown()
    rows = list(csv.DictReader(table.csv().splitlines()))
    assert float(rows[0]["fid_mean"]) == 3.0
    assert float(rows[0]["fid_sd"]) == pytest.approx(math.sqrt(7))
    assert (rows[1]["fid_sd"], rows[2]["fid_mean"], rows[0]["published"]) == ("", "", "2.5")


def test_on_the_screen_few_groups_are_columns_and_many_are_rows(groups: list[Group]) -> None:
    few, many = make_table(groups).for_screen(), make_table(groups * 2).for_screen()
    assert [str(column.header) for column in few.columns] == ["", "plain", "one", "none"]
    assert [str(column.header) for column in many.columns][:3] == ["", "runs", "FID ↓"]
    assert (few.row_count, many.row_count) == (5, 6)


def test_the_floor_is_told_and_what_does_not_compare(groups: list[Group], tmp_path: Path) -> None:
    assert len(make_table(groups).notes) == 1
    assert "1,000 samples" in make_table(groups).notes[0]
    assert "500 held-out real images likewise, is 1.5." in make_table(groups).notes[0]
    odd = Group("odd", [run(tmp_path / "odd", feature_space="others", fid_floor=3.0)])
    assert "scored differently" in make_table([*groups, odd]).notes[-1]


@pytest.mark.parametrize("other", [{"reference": "photos.npz", "fid_floor": None}, {"fid_floor": None}])
def test_another_reference_and_a_missing_floor_do_not_compare(tmp_path: Path, other: dict[str, object]) -> None:
    plain, odd = run(tmp_path / "plain"), run(tmp_path / "odd", **other, num_held_out=0)
    for folders in ([plain, odd], [odd, plain]):
        notes = make_table([Group("all", folders)]).notes
        assert "scored differently" in notes[-1] and "its floor, 500 held-out real images likewise" in notes[0]
        assert ("4500 training images, photos.npz" in notes[0]) == ("reference" in other)


def test_runs_without_a_floor_are_of_one_reference_or_do_not_compare(tmp_path: Path) -> None:
    one, same = (run(tmp_path / name, reference="a.npz", fid_floor=None) for name in ("one", "same"))
    other = run(tmp_path / "other", reference="b.npz", fid_floor=None)
    assert len(make_table([Group("", [one, same])]).notes) == 1
    assert "scored differently" in make_table([Group("", [one, same, other])]).notes[-1]
