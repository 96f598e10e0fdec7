from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from rearkit.errors import DataError, RearkitError, StorageError
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.settings import setting, settings
from rearkit.recipe.tables import ComponentTable, Recipe, component_tables
from rearkit.stages.flow import STAGES
from rearkit.stages.relevant import result_relevant
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.run_recipe import run_recipe, save_resolved_recipe
from rearkit.stages.stage import (
    Outcome,
    Stage,
    check_stages_before,
    expected_keys,
    run_stage,
    stage_key,
    up_to_date,
)
from rearkit.system.files import write_json

DONE = "stage.json"
KEY = "key"
PREVIOUS = "previous"

Stages = dict[str, Stage]


class Works:
    """Three stages that write text: ``a`` from [train], ``b`` from a and [sample], ``c`` from b and the seed."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.fail_in: str | None = None
        self.a = Stage("a", (), lambda r, _: {"train": r.train}, self._work("a", lambda r: f"{r.train.lr}"))
        self.b = Stage("b", ("a",), lambda recipe, folder: {"sample": recipe.sample}, self._work("b", lambda r: r.name))
        self.c = Stage("c", ("b",), lambda recipe, folder: {"seed": recipe.seed}, self._work("c", lambda r: r.name))

    def _work(self, name: str, content: Callable[[Recipe], str]) -> Callable[[Recipe, RunFolder], Outcome]:
        def run(recipe: Recipe, folder: RunFolder) -> Outcome:
            self.runs.append(name)
            place = folder.stage(name)
            (place / "part").write_text((place / "part").read_text() + "." if (place / "part").is_file() else ".")
            if self.fail_in == name:
                raise KeyboardInterrupt
            (place / "out").write_text(content(recipe))
            (place / "more").write_text("the same every time")
            return Outcome({"content": content(recipe)}, ("out", "more"))

        return run

    def bring_up_to_date(self, recipe: Recipe, folder: RunFolder) -> list[str]:
        """Run all three; return which of them had anything to do."""
        self.runs.clear()
        worked = [stage.name for stage in (self.a, self.b, self.c) if run_stage(stage, recipe, folder)]
        assert worked == self.runs
        return worked


@pytest.fixture
def works() -> Works:
    return Works()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_second_run_has_nothing_to_do(tiny: Callable[..., Recipe], works: Works, folder: RunFolder) -> None:
    assert works.bring_up_to_date(tiny(), folder) == ["a", "b", "c"]
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    assert works.bring_up_to_date(tiny(), folder) == []
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before
    assert folder.result("b") == {"content": "tiny"}


def test_a_change_runs_the_stage_that_it_concerns_and_those_whose_input_changed(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    works.bring_up_to_date(tiny(), folder)
    assert works.bring_up_to_date(tiny(seed=1), folder) == ["c"]
    assert works.bring_up_to_date(tiny(seed=1, sample={"top_k": 3}), folder) == ["b"]  # and b's output stayed the same
    changed = tiny(seed=1, sample={"top_k": 3}, train={"lr": 0.5})
    assert works.bring_up_to_date(changed, folder) == ["a", "b"]
    assert works.bring_up_to_date(changed, folder) == []


def test_cosmetic_settings_run_nothing(tiny: Callable[..., Recipe], works: Works, folder: RunFolder) -> None:
    works.bring_up_to_date(tiny(), folder)
    cosmetic = tiny(
        train={"log_every": 3, "validate_every": 2, "checkpoint_every": 7, "keep_checkpoints": 9},
        sample={"batch": 5, "grid_classes": 3, "grid_per_class": 2},
        device="auto",
    )
    assert cosmetic != tiny()
    assert works.bring_up_to_date(cosmetic, folder) == []


def keys(recipe: Recipe, folder: RunFolder) -> dict[str, str]:
    return {stage.name: stage_key(stage, recipe, folder) for stage in STAGES}


def changed_stages(first: Recipe, second: Recipe, folder: RunFolder) -> set[str]:
    """Which of the real stages see a difference between two recipes, by themselves."""
    before, after = keys(first, folder), keys(second, folder)
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(
    ("tables", "stages"),
    [
        ({"data": {"shard_size": 7}}, {"data"}),
        ({"tokenizer": {"codebook_size": 9}}, {"tokenizer"}),
        ({"tokenizer": {"fit": {"lr": 0.5}}}, {"tokenizer"}),
        ({"tokenizer": {"fit": {"checkpoint_every": 3}}}, {"tokenizer"}),  # against no fit at all
        ({"tokens": {"augment": "flip"}}, {"tokens"}),
        ({"tokens": {"batch": 3}}, set()),
        ({"backbone": {"num_layers": 3}}, {"train"}),
        ({"noise": {"start_level": 0.5}}, {"train"}),
        ({"regularizers": []}, {"train"}),
        ({"train": {"clip": 0.5}}, {"train"}),
        ({"train": {"deepspeed": {"mine": 1}}}, {"train"}),
        ({"train": {"log_every": 3, "keep_checkpoints": 7}}, set()),
        ({"sample": {"temperature": 0.5}}, {"sample"}),
        ({"sample": {"batch": 3, "grid_classes": 2}}, set()),
        ({"evaluate": {"nearest_k": 5}}, {"evaluate"}),
        ({"evaluate": {"classifier": {"steps": 5}}}, {"evaluate"}),
        ({"evaluate": {"batch": 5}}, set()),
        ({"name": "another", "device": "auto"}, set()),
        ({"requires": ["something"]}, set()),
    ],
)
def test_each_table_concerns_its_stage(
    tables: dict[str, Any], stages: set[str], tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    assert changed_stages(tiny(), tiny(**tables), folder) == stages


def test_how_often_a_fit_saves_is_cosmetic(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    first, second = (tiny(tokenizer={"fit": {"checkpoint_every": every}}) for every in (3, 4))
    assert changed_stages(first, second, folder) == set()


def test_the_seed_concerns_all_stages_that_draw(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    assert changed_stages(tiny(), tiny(seed=1), folder) == {"tokenizer", "train", "sample", "evaluate"}


@pytest.mark.parametrize(
    ("table", "key", "stage"),
    [
        ("tokenizer", "weights", "tokenizer"),
        ("backbone", "weights", "train"),
        ("evaluate", "feature_weights", "evaluate"),
        ("evaluate", "reference", "evaluate"),
    ],
)
def test_files_that_a_recipe_names_count_by_their_content(
    table: str, key: str, stage: str, tiny: Callable[..., Recipe], folder: RunFolder, tmp_path: Path
) -> None:
    named = tmp_path / "file.bin"
    recipe = tiny(**{table: {key: str(named)}})
    found = []
    for content in ("first", "second", "first"):
        named.write_text(content)
        found.append(keys(recipe, folder))
    assert {name for name in found[0] if found[0][name] != found[1][name]} == {stage}
    assert found[2] == found[0]


def test_a_new_version_of_rearkit_leaves_runs_of_built_in_components_up_to_date(
    tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    recipe = tiny()
    newer = [attrs.evolve(table, provider="rearkit 99") for table in (recipe.backbone, recipe.tokenizer)]
    assert changed_stages(recipe, attrs.evolve(recipe, backbone=newer[0], tokenizer=newer[1]), folder) == set()


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("data", "c0eeca8ac982"),
        ("tokenizer", "fac62ca75485"),
        ("tokens", "abbb25fe0668"),
        ("train", "2a2e0d27f0a1"),
        ("sample", "a82c0b314621"),
        ("evaluate", "298a0de3024d"),
    ],
)
def test_the_keys_of_built_in_components_are_those_of_the_first_version(
    stage: str, key: str, tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    """A key that changes makes everybody's finished runs run again."""
    assert keys(tiny(), folder)[stage].startswith(key)


@pytest.mark.parametrize(
    ("kind", "stages"),
    [
        ("dataset", {"data"}),
        ("tokenizer", {"tokenizer", "tokens", "train", "sample", "evaluate"}),
        ("backbone", {"train", "sample"}),
        ("noise", {"train"}),
        ("regularizer", {"train"}),
    ],
)
def test_a_plugins_code_counts_in_the_stages_that_run_it(
    kind: str, stages: set[str], tiny: Callable[..., Recipe], folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = ["theirs 1.0 abc"]
    recipe = tiny()
    table = next(table for table in component_tables(recipe) if table.kind == kind)
    theirs = attrs.evolve(table, provider="theirs 1.0")
    monkeypatch.setattr("rearkit.stages.stage.code_of", lambda component: code[0])
    field = {"dataset": "data", "regularizer": "regularizers"}.get(kind, kind)
    value = {
        "dataset": lambda: attrs.evolve(recipe.data, source=theirs),
        "regularizer": lambda: (theirs,),
    }.get(kind, lambda: theirs)()
    recipe = attrs.evolve(recipe, **{field: value})
    before, expected = keys(recipe, folder), expected_keys(STAGES, recipe)
    code[0] = "theirs 1.0 def"
    after, now_expected = keys(recipe, folder), expected_keys(STAGES, recipe)
    assert {name for name in before if before[name] != after[name]} == stages
    assert {name for name in before if expected[name] != now_expected[name]} >= stages


def test_settings_of_components_may_be_cosmetic_too(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    @settings
    class Theirs:
        """Somebody's settings."""

        rate: float = setting("counts", default=0.1)
        verbose: bool = setting("does not count", default=False, cosmetic=True)

    @attrs.frozen
    class Table(ComponentTable):
        kind = "noise"

    recipe = tiny()
    variants = [
        attrs.evolve(recipe, noise=Table("theirs", Theirs(**how))) for how in ({}, {"verbose": True}, {"rate": 1})
    ]
    assert changed_stages(variants[0], variants[1], folder) == set()
    assert changed_stages(variants[0], variants[2], folder) == {"train"}


def test_a_stage_cut_off_goes_on_with_what_it_has(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    works.fail_in = "b"
    with pytest.raises(KeyboardInterrupt):
        works.bring_up_to_date(tiny(), folder)
    assert folder.done("a") is not None
    assert folder.done("b") is None
    works.fail_in = None
    assert works.bring_up_to_date(tiny(), folder) == ["b", "c"]
    assert "b: going on from where it stopped" in capsys.readouterr().out
    assert (folder.stage("b") / "part").read_text() == ".."


def test_a_stage_cut_off_under_another_recipe_starts_anew(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    works.fail_in = "b"
    with pytest.raises(KeyboardInterrupt):
        works.bring_up_to_date(tiny(), folder)
    works.fail_in = None
    works.bring_up_to_date(tiny(sample={"top_k": 3}), folder)
    assert (folder.stage("b") / "part").read_text() == "."


def test_a_finished_result_of_an_earlier_recipe_is_kept_aside(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = (tiny(train={"lr": lr}) for lr in (0.1, 0.2, 0.3))
    works.bring_up_to_date(first, folder)
    works.bring_up_to_date(second, folder)
    aside = folder.path / PREVIOUS / "a"
    assert (aside / "out").read_text() == "0.1"
    assert json.loads((aside / DONE).read_text())["result"] == {"content": "0.1"}
    assert f"the earlier result is kept in {aside}" in capsys.readouterr().out
    works.bring_up_to_date(third, folder)
    assert (aside / "out").read_text() == "0.2"
    assert (folder.stage("a") / "out").read_text() == "0.3"


@pytest.mark.parametrize("cut_off", [False, True], ids=["finished", "cut off"])
def test_a_result_that_was_moved_aside_is_taken_again(
    cut_off: bool, tiny: Callable[..., Recipe], works: Works, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tiny(train={"lr": 0.1}), tiny(train={"lr": 0.2})
    works.bring_up_to_date(first, folder)
    works.fail_in = "a" if cut_off else None
    with pytest.raises(KeyboardInterrupt) if cut_off else contextlib.nullcontext():
        works.bring_up_to_date(second, folder)
    works.fail_in = None
    assert works.bring_up_to_date(first, folder) == []
    aside = folder.path / PREVIOUS / "a"
    assert f"a: up to date with the result that was kept in {aside}" in capsys.readouterr().out
    assert (folder.stage("a") / "out").read_text() == "0.1" and (aside / "out").exists() != cut_off
    # And back, where that was finished.
    assert works.bring_up_to_date(second, folder) == (["a", "b"] if cut_off else [])


def test_a_damaged_result_is_not_taken_again(tiny: Callable[..., Recipe], works: Works, folder: RunFolder) -> None:
    works.bring_up_to_date(tiny(train={"lr": 0.1}), folder)
    works.bring_up_to_date(tiny(train={"lr": 0.2}), folder)
    (folder.path / PREVIOUS / "a" / "out").write_text("0.7")
    works.runs.clear()
    assert run_stage(works.a, tiny(train={"lr": 0.1}), folder)
    assert (folder.stage("a") / "out").read_text() == "0.1"


def floored(runs: list[str]) -> Stage:
    """A stage that reaches a share of codes in use of 0.5."""

    def judge(recipe: Recipe, folder: RunFolder, result: Mapping[str, Any]) -> None:
        if result["use"] < recipe.tokens.min_codebook_use:
            raise DataError("too few")

    def work(recipe: Recipe, folder: RunFolder) -> Outcome:
        runs.append("d")
        (folder.stage("d") / "out").write_text("made")
        judge(recipe, folder, {"use": 0.5})
        return Outcome({"use": 0.5}, ("out",))

    return Stage("d", (), lambda recipe, _: {"tokens": recipe.tokens}, work, judge=judge)


def test_a_finished_result_is_judged_by_new_floors_and_kept(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    runs: list[str] = []
    stage, (low, high, other) = floored(runs), (tiny(tokens={"min_codebook_use": share}) for share in (0.1, 0.6, 0.2))
    assert run_stage(stage, low, folder) and run_stage(stage, other, folder) is False
    for _ in range(2):
        with pytest.raises(DataError, match="too few"):
            run_stage(stage, high, folder)
    assert folder.result("d") == {"use": 0.5} and up_to_date([stage], other, folder)
    assert run_stage(stage, low, folder) is False
    # Another setting is another result.
    assert run_stage(stage, tiny(tokens={"min_codebook_use": 0.1, "augment": "flip"}), folder)
    assert runs == ["d", "d"]


def test_a_record_without_the_key_without_floors_is_of_its_floors(
    tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    runs: list[str] = []
    stage, recipes = floored(runs), [tiny(tokens={"min_codebook_use": share}) for share in (0.1, 0.2)]
    run_stage(stage, recipes[0], folder)
    record = json.loads(folder.record("d").read_text())
    # As earlier versions wrote it.
    write_json(folder.record("d"), {name: record[name] for name in ("key", "digest", "seconds", "outputs", "result")})
    assert run_stage(stage, recipes[0], folder) is False
    assert run_stage(stage, recipes[1], folder)


def test_an_unfinished_result_does_not_push_a_finished_one_out(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    first, second, third = (tiny(train={"lr": lr}) for lr in (0.1, 0.2, 0.3))
    works.bring_up_to_date(first, folder)
    works.fail_in = "a"
    with pytest.raises(KeyboardInterrupt):
        works.bring_up_to_date(second, folder)
    works.fail_in = None
    works.bring_up_to_date(third, folder)
    assert (folder.path / PREVIOUS / "a" / "out").read_text() == "0.1"


@pytest.mark.parametrize("damage", ["missing", "longer", "empty"])
def test_a_stage_that_lost_a_file_runs_again_and_names_it(
    damage: str, tiny: Callable[..., Recipe], works: Works, folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    works.bring_up_to_date(tiny(), folder)
    out = folder.stage("b") / "out"
    if damage == "missing":
        out.unlink()
    else:
        out.write_text("" if damage == "empty" else "tiny and more")
    capsys.readouterr()
    assert works.bring_up_to_date(tiny(), folder) == ["b"]
    assert f"b: {out} is missing or has changed since it was written; running it again" in capsys.readouterr().out
    assert out.read_text() == "tiny"
    assert (folder.stage("b") / "part").read_text() == ".."  # what is whole is there to be used again
    assert not (folder.path / PREVIOUS).exists()


@pytest.mark.parametrize("content", ["", "{", "null", "not json"])
def test_a_stage_whose_record_is_damaged_goes_on(
    content: str, tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    works.bring_up_to_date(tiny(), folder)
    (folder.stage("c") / DONE).write_text(content)
    assert folder.done("c") is None
    assert works.bring_up_to_date(tiny(), folder) == ["c"]


def test_what_a_killed_process_left_half_written_is_cleared(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    works.fail_in = "a"
    with pytest.raises(KeyboardInterrupt):
        works.bring_up_to_date(tiny(), folder)
    (folder.stage("a") / ".out.tmp").write_text("half")
    works.fail_in = None
    works.bring_up_to_date(tiny(), folder)
    assert sorted(os.listdir(folder.stage("a"))) == [KEY, "more", "out", "part", DONE]  # noqa: PTH208


def test_a_record_has_the_hash_and_size_of_every_output(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    works.bring_up_to_date(tiny(), folder)
    done = folder.done("b")
    assert done is not None
    assert set(done["outputs"]) == {"out", "more"}
    assert done["outputs"]["out"]["bytes"] == 4
    assert (folder.stage("b") / KEY).read_text().split() == [done["key"]] * 2
    assert done["key"] == stage_key(works.b, tiny(), folder)
    assert done["seconds"] >= 0


@pytest.mark.parametrize("bit", [0, 5, 700])
def test_a_damaged_key_does_not_turn_a_stage_away_that_was_cut_off(
    bit: int, tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    works.fail_in = "a"
    with pytest.raises(KeyboardInterrupt):
        works.bring_up_to_date(tiny(), folder)
    key = folder.key("a")
    content = bytearray(key.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    key.write_bytes(content)
    works.fail_in = None
    works.bring_up_to_date(tiny(), folder)
    assert (folder.stage("a") / "part").read_text() == ".."  # it went on with what it had


def test_a_stage_without_a_key_is_known_by_what_lies_in_its_folder(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    stage = attrs.evolve(works.a, owns=lambda folder, key: True)
    works.fail_in = "a"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage, tiny(), folder)
        folder.key("a").write_text("")
    assert (folder.stage("a") / "part").read_text() == ".."
    with pytest.raises(KeyboardInterrupt):
        run_stage(works.a, tiny(), folder)
    assert (folder.previous("a") / "part").read_text() == ".."  # nobody knows it: kept, and begun anew


def test_a_damaged_input_is_made_again_before_it_is_read(
    tiny: Callable[..., Recipe],
    works: Works,
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rearkit.stages.intact.HASHED_AT_START", 0)  # as for large files
    works.bring_up_to_date(tiny(), folder)
    out = folder.stage("a") / "out"
    written = out.read_text()
    out.write_text("x" * len(written))
    everything = (works.a, works.b, works.c)
    assert not any(run_stage(stage, tiny(), folder, everything) for stage in everything)  # nobody reads it
    works.runs.clear()
    changed = tiny(sample={"top_k": 3})
    with pytest.raises(RearkitError, match=r"b: .*/a/out is damaged \(SHA-256\); run: python -m rearkit a RECIPE"):
        run_stage(works.b, changed, folder)
    assert run_stage(works.b, changed, folder, everything)
    assert works.runs == ["a", "b"] and out.read_text() == written


def test_the_advice_to_run_a_stage_alone_works(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rearkit.stages.intact.HASHED_AT_START", 0)
    works.bring_up_to_date(tiny(), folder)
    out = folder.stage("a") / "out"
    out.write_text("x" * out.stat().st_size)
    with pytest.raises(RearkitError, match="lost or changed a file"):
        check_stages_before(works.b, (works.a, works.b), tiny(), folder, "run: command {}", thorough=True)
    assert run_stage(works.a, tiny(), folder)
    check_stages_before(works.b, (works.a, works.b), tiny(), folder, "run: command {}", thorough=True)


def test_a_file_that_cannot_be_made_again_leaves_the_record(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    """A run whose images have moved away goes on being one."""
    works.bring_up_to_date(tiny(), folder)

    def gone(recipe: Recipe, folder: RunFolder | None) -> dict[str, Any]:
        if folder is None:
            raise RearkitError("no such folder of images")
        return {"train": recipe.train}

    (folder.stage("a") / "out").write_text("damaged")
    with pytest.raises(RearkitError, match=r"out: damaged, and cannot be made again: no such folder of images"):
        run_stage(attrs.evolve(works.a, tables=gone), tiny(), folder)
    assert folder.done("a") is not None


# A stage run alone


def test_a_stage_alone_needs_its_inputs_up_to_date(
    tiny: Callable[..., Recipe], works: Works, folder: RunFolder
) -> None:
    stages = (works.a, works.b, works.c)

    def trouble(stage: Stage, recipe: Recipe) -> str | None:
        try:
            check_stages_before(stage, stages, recipe, folder, "run: command {}")
        except RearkitError as error:
            return str(error)
        return None

    assert trouble(works.a, tiny()) is None
    assert trouble(works.b, tiny()) == "b: needs stage 'a', which has not run to its end; run: command a"
    works.bring_up_to_date(tiny(), folder)
    assert trouble(works.b, tiny()) is None
    assert "which was last run with another recipe" in str(trouble(works.b, tiny(train={"lr": 0.5})))
    (folder.stage("a") / "out").unlink()
    assert "which has lost or changed a file" in str(trouble(works.b, tiny()))
    assert trouble(works.c, tiny()) is None


def test_a_result_that_is_not_there_says_how_to_get_it(folder: RunFolder) -> None:
    with pytest.raises(RearkitError, match="stage 'train' has not run; run: python -m rearkit train RECIPE"):
        folder.result("train")


# Whose folder it is


def test_a_folder_belongs_to_one_recipe(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    folder.claim(tiny().name)
    folder.claim(tiny(train={"lr": 0.5}).name)
    with pytest.raises(RearkitError, match="holds the run of another recipe, 'tiny'; choose another folder with --out"):
        folder.claim(tiny(name="other").name)


def test_a_folder_of_something_else_is_left_alone(tiny: Callable[..., Recipe], folder: RunFolder) -> None:
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("x")
    with pytest.raises(RearkitError, match=r"not empty and not a run of rearkit \(it holds thesis\.tex\)"):
        folder.claim(tiny().name)
    assert os.listdir(folder.path) == ["thesis.tex"]  # noqa: PTH208


def test_an_empty_folder_is_taken_and_a_file_is_not(tiny: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").claim(tiny().name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RearkitError, match="not a folder"):
        RunFolder(tmp_path / "file").claim(tiny().name)
    with pytest.raises(StorageError):
        RunFolder(tmp_path / "file" / "below").claim(tiny().name)


@pytest.mark.parametrize("content", [b"", b"{", b'{"recipe": "tiny", "sha256": "0"}', b"\xff"])
def test_the_record_of_whose_folder_it_is_is_made_again(
    content: bytes, tiny: Callable[..., Recipe], folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.claim("tiny")
    save_resolved_recipe(tiny(), folder)
    folder.owner.write_bytes(content)
    with pytest.raises(RearkitError, match="holds the run of another recipe, 'tiny'"):
        folder.claim("other")
    folder.claim("tiny")
    assert f"{folder.owner} is missing or damaged; it is made again" in capsys.readouterr().out
    folder.claim("tiny")
    assert capsys.readouterr().out == ""


def test_a_recipe_that_was_damaged_or_edited_is_not_taken_for_the_runs(
    tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    folder.claim("tiny")
    save_resolved_recipe(tiny(), folder)
    assert run_recipe(folder) == tiny()
    folder.recipe.write_bytes(folder.recipe.read_bytes().replace(b"steps = 4", b"steps = 5") + b"# \xff")
    with pytest.raises(RearkitError, match=r"recipe\.toml: damaged, or edited since the run"):
        run_recipe(folder)
    save_resolved_recipe(tiny(), folder)
    assert run_recipe(folder) == tiny()


def test_the_recipe_is_saved_with_every_default_and_can_be_run_again(
    tiny: Callable[..., Recipe], folder: RunFolder
) -> None:
    recipe = tiny()
    save_resolved_recipe(recipe, folder)
    assert load_recipe(folder.path / "recipe.toml") == recipe
    assert "weight_decay" in (folder.path / "recipe.toml").read_text()


# Shards made elsewhere


def test_shards_whose_content_changed_are_noticed_by_all_that_read_them(
    tiny: Callable[..., Recipe], tmp_path: Path, folder: RunFolder
) -> None:
    """The same names, the same counts, other images: what was made of the old ones must be made again.

    A mere copy, with another date, is the same.
    """
    import webdataset

    from rearkit.stages import data, tokens

    def write(value: bytes, when: int) -> None:
        with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
            writer.write({"__key__": "a", "png": value, "cls": 1})
        os.utime(tmp_path / "0.tar", ns=(when, when))

    recipe = tiny(data={"source": {"name": "shards", "train": str(tmp_path / "0.tar"), "num_classes": 3}})
    write(b"first", 10**9)
    assert run_stage(data.STAGE, recipe, folder)
    assert not run_stage(data.STAGE, recipe, folder)
    before = stage_key(tokens.STAGE, recipe, folder)
    os.utime(tmp_path / "0.tar", ns=(2 * 10**9, 2 * 10**9))
    run_stage(data.STAGE, recipe, folder)
    assert stage_key(tokens.STAGE, recipe, folder) == before
    write(b"another", 3 * 10**9)
    assert run_stage(data.STAGE, recipe, folder)
    assert stage_key(tokens.STAGE, recipe, folder) != before


def test_a_field_that_came_later_changes_no_key_at_its_default(tiny: Callable[..., Recipe]) -> None:
    def train_key(**backbone: str) -> str:
        return expected_keys(STAGES, tiny(backbone=backbone))["train"]

    assert "weights_key" not in result_relevant(tiny().backbone)
    assert train_key() != train_key(weights_key="ema")


def test_a_former_default_that_is_given_is_not_the_one_of_today(tiny: Callable[..., Recipe]) -> None:
    def told(**sample: str) -> Any:
        return result_relevant(tiny(sample={"num_images": 4, **sample}).sample)["precision"]

    assert told() == told(precision="auto") == "fp32"  # as it stands in the keys of 0.1
    assert told(precision="fp32") not in ("auto", "fp32", told(precision="bf16"))
