"""Single bits flipped, files cut and files emptied, of finished runs and of runs that were cut off.

After each fault the same run is started again. It must name the file, or come to the same results: weights, samples
and scores to the last bit. It must not end in a traceback, and not be closed to its recipe.
"""

from __future__ import annotations

import functools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ledger import Ledger, Outcome
from small_runs import RESULTS, digests, small_recipe

from rearkit import pipeline
from rearkit.analysis.verify import verify
from rearkit.cli.main import cli
from rearkit.errors import RearkitError
from rearkit.fitting.fit import TokenizerFit
from rearkit.recipe.tables import Recipe
from rearkit.reports.ship import export_run
from rearkit.stages import intact
from rearkit.stages import sample as sample_stage
from rearkit.stages import tokens as tokens_stage
from rearkit.system import console
from rearkit.training.trainer import Trainer

# What no run reads: pages and pictures to look at, and TensorBoard's own files.
UNREAD = (".html", ".png", ".lock", "tfevents")
STAGES = ("data", "tokenizer", "tokens", "train", "sample", "evaluate")


class CutOff(Exception):
    """Stands for a killed process."""


def cut_off(*_: Any, **__: Any) -> Any:
    raise CutOff


def after(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """Let a function be called a number of times, and cut the run off after the last."""
    left = iter(range(calls - 1))

    def counted(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if next(left, None) is None:
            raise CutOff
        return result

    return counted


# Where a run is cut off: what is replaced, and by what.
CUTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "while the tokenizer is fitted": (TokenizerFit, "_save", lambda save: after(save, 2)),
    "before tokens are listed": (tokens_stage, "_finish", lambda _: cut_off),
    "while it trains": (Trainer, "step", lambda step: after(step, 5)),
    "before samples are put together": (sample_stage, "_collect", lambda _: cut_off),
}


class Runs:
    """One tiny run, finished and cut off at several places, to be copied, damaged and started again."""

    def __init__(self, recipe: Recipe, place: Path) -> None:
        self.recipe, self.place, self.said = recipe, place, ""
        pipeline.run(recipe, place / "finished")
        self.results = digests(place / "finished")

    def copy(self, name: str) -> Path:
        """Return the finished run, or the one that was cut off where ``name`` says; it is made when first asked for."""
        folder = self.place / name.replace(" ", "-")
        if name in CUTS and not folder.is_dir():
            owner, function, replace = CUTS[name]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, function, replace(getattr(owner, function)))
                with pytest.raises(CutOff):
                    pipeline.run(self.recipe, folder)
        return folder

    def files(self, copy: str) -> list[Path]:
        """Return the files of a copy that a run reads, relative to it."""
        folder = self.copy(copy)
        found = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
        return [path for path in found if not any(word in path.name for word in UNREAD)]

    def after_fault(self, copy: str, file: Path, fault: Callable[[bytes], bytes], out: Callable[[], str]) -> Outcome:
        """Damage a file of a copy, start the run again, and judge what comes of it."""
        folder = self.place / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.copy(copy), folder)
        (folder / file).write_bytes(fault((folder / file).read_bytes()))
        console.say_once.cache_clear()  # type: ignore[attr-defined]
        out()
        try:
            pipeline.run(self.recipe, folder)
        except RearkitError as error:
            return "held" if str(file) in str(error) or file.name in str(error) else "lost"
        told = self.said = out()
        if digests(folder) == self.results:
            return "held"
        named = {str(file), str(file.parent)} if file.parent != Path() else {str(file)}
        return "held" if any(name in told for name in named) else "silent"


@pytest.fixture(scope="module")
def runs(tiny: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    place = tmp_path_factory.mktemp("runs")
    recipe = small_recipe(tiny, place)
    with pytest.MonkeyPatch.context() as patch:
        # The page is read by nobody but people, and its charts take most of the time.
        patch.setattr(
            pipeline, "_report", lambda recipe, folder, worked, seconds: pipeline.show_results(recipe, folder)
        )
        yield Runs(recipe, place)


def flip(bit: int) -> Callable[[bytes], bytes]:
    def fault(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    return fault


def try_faults(runs: Runs, copy: str, flips: int, seed: int, out: Callable[[], str], files: list[Path]) -> Ledger:
    """Flip bits of files, cut them short and empty them."""
    ledger = Ledger()
    draw = random.Random(seed)
    for file in files:
        size = (runs.copy(copy) / file).stat().st_size
        bits = sorted(draw.sample(range(8 * size), min(flips, 8 * size)))
        # All of them also near the beginning, where formats have their headers.
        bits += [draw.randrange(8 * min(size, 200)) for _ in range(flips // 2)] if size else []
        faults: list[tuple[str, str, Callable[[bytes], bytes]]] = [
            *(("flipped bit", f"bit {bit} of {file}", flip(bit)) for bit in bits),
            ("cut", str(file), lambda content: content[: len(content) // 2]),
            ("emptied", str(file), lambda content: b""),
        ]
        for kind, detail, fault in faults:
            work = lambda file=file, fault=fault: runs.after_fault(copy, file, fault, out)  # noqa: E731
            ledger.attempt(f"{kind}, {copy}", detail, work)
    return ledger


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


# One file of each kind; the slow tests have all.
FEW = ("run.json", "recipe.toml", "train/stage.json", "data/shards.json", "tokens/shards.json", "tokenizer/key")


def test_a_finished_run_that_is_damaged_says_so_or_is_as_it_was(runs: Runs, out: Callable[[], str]) -> None:
    try_faults(runs, "finished", 0, 0, out, [Path(file) for file in FEW]).check()


def test_a_training_that_is_resumed_passes_damage_over(runs: Runs, out: Callable[[], str]) -> None:
    ledger = Ledger()
    for file, bit in (("checkpoints/step-00000004/manifest.json", 900), ("log.jsonl", 700), ("key", 3)):
        work = functools.partial(runs.after_fault, "while it trains", Path("train") / file, flip(bit), out)
        ledger.attempt("flipped bit", file, work)
    ledger.check()


@pytest.mark.parametrize("shard", ["train-000000.tar", "held-out-000000.tar"])
@pytest.mark.parametrize("damage", ["flipped bit", "cut", "emptied"])
def test_a_damaged_shard_of_tokens_is_named_and_made_again(
    shard: str, damage: str, runs: Runs, out: Callable[[], str]
) -> None:
    file = Path("tokens", shard)
    written = (runs.copy("finished") / file).read_bytes()
    # Of a token, which is then another one and no less likely.
    token = 8 * (written.index(b"NUMPY", written.index(b"tokens.npy")) + 130)
    fault = {"flipped bit": flip(token), "cut": lambda content: content[: len(content) // 2], "emptied": lambda _: b""}
    assert runs.after_fault("finished", file, fault[damage], out) == "held"
    assert f"{file} is missing or has changed since it was written; running it again" in runs.said.replace("\n", " ")
    assert (runs.place / "damaged" / file).read_bytes() == written


def test_verify_names_what_is_damaged_and_writes_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(runs.copy("finished"), tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def verify(code: int, *options: str) -> str:
        result = CliRunner().invoke(cli, ["verify", "run", *options])
        assert result.exit_code == code, result.output
        return result.output

    first, last = verify(0).splitlines()
    assert first == "stages to trust: data, tokenizer, tokens, train, sample, evaluate"
    assert last.startswith("run: ") and last.endswith(" sound, 0 unchecked, 0 damaged or missing")
    for file in (*RESULTS, "train/log.jsonl", "train/checkpoints/step-00000006/manifest.json", "run.json"):
        path = tmp_path / "run" / file
        path.write_bytes(flip(8 * 60)(path.read_bytes()))
    (tmp_path / "run/tokens/shards.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    told = verify(3)
    again = "python -m rearkit tokens RECIPE --out run makes it again"
    assert f"damaged: tokens/shards.json: missing; {again}\n" in told
    assert "train/checkpoints/step-00000006: its manifest is damaged; the training is finished" in told
    assert "scores.json: is no copy of evaluate/scores.json; `run` writes it again" in told
    assert "stages to trust: data, evaluate\n" in told
    found = json.loads(verify(3, "--json"))
    assert found["trusted_stages"] == ["data", "evaluate"] and found["busy"] is None
    assert sum(one["state"] == "damaged" for one in found["files"]) == len(RESULTS) + 4
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_verify_takes_the_folder_of_a_sweep(runs: Runs, tmp_path: Path) -> None:
    for name in ("a-s0", "a-s1", "shared/123456"):
        shutil.copytree(runs.copy("finished"), tmp_path / "sweep" / name)
    (tmp_path / "sweep" / "sweep.json").write_text('{"sweep": "sweep"}')
    result = CliRunner().invoke(cli, ["verify", str(tmp_path / "sweep")])
    assert result.exit_code == 0 and "stages to trust: 18 of 3 runs\n" in result.output
    path = tmp_path / "sweep" / "a-s1" / "train" / "model.safetensors"
    path.write_bytes(flip(8 * 5000)(path.read_bytes()))
    (tmp_path / "sweep" / "a-s1" / "run.json").unlink()
    result = CliRunner().invoke(cli, ["verify", str(tmp_path / "sweep")])
    assert "damaged: a-s1/run.json: missing" in result.output
    assert result.exit_code == 3 and "stages to trust: 17 of 3 runs\n" in result.output
    assert "damaged: a-s1/train/model.safetensors: not what was written (SHA-256)" in result.output


def test_verify_takes_an_exported_model_and_nothing_else(runs: Runs, tmp_path: Path) -> None:
    export_run(runs.copy("finished"), tmp_path / "model")
    assert CliRunner().invoke(cli, ["verify", str(tmp_path / "model")]).exit_code == 0
    path = tmp_path / "model" / "tokenizer.safetensors"
    path.write_bytes(flip(8 * 5000)(path.read_bytes()))
    result = CliRunner().invoke(cli, ["verify", str(tmp_path / "model")])
    assert result.exit_code == 3
    assert "damaged: tokenizer.safetensors: is not what manifest.json says (SHA-256)" in result.output
    with pytest.raises(RearkitError, match="no folder of a run or sweep, and none that `export` wrote"):
        verify(tmp_path)


def test_verify_says_who_is_at_work(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.copy("finished"), tmp_path / "run")
    script = (
        "import sys; from pathlib import Path; from rearkit.system.locks import claimed\n"
        "with claimed(Path(sys.argv[1]), 'it'): print(1, flush=1); input()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        assert str(verify(tmp_path / "run").busy).startswith(f"process {process.pid} on ")
        process.communicate("\n")
    assert verify(tmp_path / "run").busy is None


@pytest.mark.slow
@pytest.mark.parametrize("copy", ["finished", *CUTS])
def test_every_file_of_a_run(copy: str, runs: Runs, out: Callable[[], str]) -> None:
    try_faults(runs, copy, 8, 1, out, runs.files(copy)).check()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[1:])
def test_what_a_stage_reads_is_hashed_though_no_start_does(
    stage: str, runs: Runs, out: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is with files too large to be hashed at each start."""
    copy = f"without {stage}"
    shutil.copytree(runs.copy("finished"), runs.copy(copy))
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(runs.copy(copy) / later)
    monkeypatch.setattr(intact, "HASHED_AT_START", 0)
    before = STAGES[: STAGES.index(stage)]
    files = [file for file in runs.files(copy) if file.parts[0] in before and file.name not in ("key", "stage.json")]
    try_faults(runs, copy, 4, 2, out, files).check()
