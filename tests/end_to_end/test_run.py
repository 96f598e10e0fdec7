"""A whole run through the command line: what it leaves, what a second one does, what a killed one loses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rearkit.system.files import sha256
from rearkit.system.locks import claimed
from tests.helpers.command import rearkit

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "recipes" / "smoke.toml"
STAGES = ("data", "tokenizer", "tokens", "train", "sample", "evaluate")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
COMMAND = (sys.executable, "-m", "rearkit")


def other_process(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
    )
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe, run to its end."""
    out = tmp_path_factory.mktemp("run") / "smoke"
    other_process("run", str(SMOKE), f"--out={out}")
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    out = tmp_path / "smoke"
    shutil.copytree(finished, out)
    return out


def up_to_date(output: str) -> list[str]:
    return re.findall(r"^(\w+): up to date$", output, re.MULTILINE)


def test_a_run_leaves_scores_pictures_and_a_page(finished: Path) -> None:
    scores = json.loads((finished / "scores.json").read_text())
    needed = {"fid", "inception_score", "precision", "recall", "fid_floor", "class_agreement", "feature_space"}
    assert needed <= scores.keys()
    assert 0 < scores["fid_floor"] < scores["fid"]
    assert "not Inception" in scores["feature_space"]
    with Image.open(finished / "samples.png") as grid:
        assert min(grid.size) > 300
    with np.load(finished / "sample" / "samples.npz") as archive:
        assert archive["arr_0"].shape == (40, 32, 32, 3) and archive["arr_0"].dtype == np.uint8
        assert np.bincount(archive["arr_1"]).tolist() == [4] * 10
    page = (finished / "report.html").read_text()
    assert "<svg" in page and "data:image/png;base64," in page
    assert not re.search(r"""(src|href)=["']?(https?:|//|\.|/)""", page)  # self-contained


def test_a_second_run_does_nothing_and_says_so(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    output = rearkit("run", str(SMOKE), f"--out={finished}")
    assert up_to_date(output) == list(STAGES)
    assert "nothing to do" in output
    first, second, third, *_, last = output.splitlines()
    assert first == "takes less than a minute on 2 CPU cores, as smoke.toml says"
    assert second == f"smoke: files go to {finished.resolve()}"
    assert third.startswith(
        "to do, less what is finished already: fit a tokenizer, 30 steps; train dit-ar, 40 steps of 16"
    )
    assert last.startswith(f"next: open {finished}/report.html in a browser, look at {finished}/samples.png")
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_a_changed_train_table_redoes_only_what_comes_after(copied: Path) -> None:
    output = rearkit("run", str(SMOKE), f"--out={copied}", "--set=train.steps=12", "--set=sample.num_images=10")
    assert up_to_date(output) == ["data", "tokenizer", "tokens"]
    assert (copied / "previous" / "train" / "model.safetensors").is_file()


def test_another_recipes_folder_is_left_alone(finished: Path) -> None:
    output = rearkit("run", str(ROOT / "recipes" / "mnist.toml"), f"--out={finished}", code=2)
    assert "holds the run of another recipe, 'smoke'" in output


@pytest.mark.slow
def test_a_training_killed_at_any_moment_ends_with_the_same_weights(copied: Path) -> None:
    """kill -9, three times; the weights are those of the uninterrupted run, bit for bit."""
    expected = sha256(copied / "train" / "model.safetensors")
    shutil.rmtree(copied / "train")
    moment = random.Random(0)
    steps = []
    for _ in range(3):
        process = subprocess.Popen([*COMMAND, "train", str(SMOKE), f"--out={copied}"], env=ENVIRONMENT)
        wait_for_log(copied / "train" / "log.jsonl", process, lines=len(steps) + 1)
        time.sleep(moment.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = [int(path.name.removeprefix("step-")) for path in (copied / "train/checkpoints").glob("step-*")]
        steps.append(max(saved, default=0))
    assert max(steps) > 0  # it was trained by several processes
    output = rearkit("train", str(SMOKE), f"--out={copied}")
    assert "going on from where it stopped" in output
    assert sha256(copied / "train" / "model.safetensors") == expected
    assert up_to_date(rearkit("run", str(SMOKE), f"--out={copied}"))[-1] == "evaluate"  # so nothing after it changed


def wait_for_log(log: Path, process: subprocess.Popen[bytes], lines: int) -> None:
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n") >= lines):
        if process.poll() is not None:  # it was faster than we
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_weights_of_another_size_are_refused_with_what_they_need(finished: Path, tmp_path: Path) -> None:
    output = rearkit(
        "run",
        str(SMOKE),
        f"--out={tmp_path / 'run'}",
        f"--set=backbone.weights={finished / 'train' / 'model.safetensors'}",
        "--set=backbone.hidden_size=64",
        "--set=train.steps=0",
        "--set=train.warmup_steps=0",
        code=2,
    )
    assert "model.safetensors: weights do not fit the DiTAR of the recipe" in output
    assert "these weights need hidden_size = 32" in output


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokens", "sample"])
def test_a_full_disk_ends_a_stage_with_its_own_code_and_costs_nothing(stage: str, copied: Path) -> None:
    shutil.rmtree(copied / stage)
    digest = {path: hash_of(path) for path in copied.rglob("*") if path.is_file()}
    # Copies of results of which it cannot be told for now that they are the recipe's; they come back with the run.
    copies = {copied / name: digest.pop(copied / name) for name in ("samples.png", "scores.json")}
    limited = f"ulimit -f 4; exec {' '.join(COMMAND)} {stage} {SMOKE} --out={copied}"  # files of 4 KiB at most
    done = subprocess.run(["bash", "-c", limited], env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stderr
    assert "the disk is full, or a quota is used up" in done.stderr and "Traceback" not in done.stderr
    assert digest == {path: hash_of(path) for path in digest}
    rearkit("run", str(SMOKE), f"--out={copied}")
    assert copies == {path: hash_of(path) for path in copies}


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_second_process_in_the_folder_of_a_run_is_refused(copied: Path) -> None:
    with claimed(copied / ".lock", "it"):
        told = other_process("run", str(SMOKE), f"--out={copied}", code=2)
    assert f"error: {copied}: process {os.getpid()} on " in told
    assert up_to_date(rearkit("run", str(SMOKE), f"--out={copied}")) == [*STAGES]


def test_a_stage_runs_again_with_all_after_it(copied: Path) -> None:
    before = sha256(copied / "sample" / "samples.npz")
    output = rearkit("run", str(SMOKE), f"--out={copied}", "--again", "sample")
    assert up_to_date(output) == ["data", "tokenizer", "tokens", "train"]
    for stage in ("sample", "evaluate"):
        assert f"{stage}: to be run again; the earlier result is kept in {copied / 'previous' / stage}" in output
    assert sha256(copied / "sample" / "samples.npz") == before  # the same recipe makes the same samples
    assert not (copied / "again").exists()
    assert up_to_date(rearkit("run", str(SMOKE), f"--out={copied}")) == list(STAGES)


def test_again_goes_on_where_it_was_cut_off(copied: Path) -> None:
    """As a scheduler starts the same command once more."""
    (copied / "again").write_text("sample\n")
    shutil.rmtree(copied / "evaluate")
    output = rearkit("run", str(SMOKE), f"--out={copied}", "--again", "sample")
    assert up_to_date(output) == ["data", "tokenizer", "tokens", "train", "sample"]
    assert "again from sample: going on from where it stopped" in output
    assert not (copied / "again").exists()


def test_again_names_a_stage(tmp_path: Path) -> None:
    output = rearkit("run", str(SMOKE), f"--out={tmp_path / 'run'}", "--again", "smaple", code=2)
    expected = "error: again: no stage 'smaple' (did you mean 'sample'?); stages: " + ", ".join(STAGES)
    assert output.splitlines() == [line for line in output.splitlines() if line == expected or "takes" in line]
    assert not (tmp_path / "run").exists()
