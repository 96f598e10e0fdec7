"""The stages besides training on several ranks: the same files as on one, one error for all, and resumption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from rank_runs import ENVIRONMENT, SMOKE, TINY, descendants, finish, rearkit

SMALL = [*TINY, "--set=data.shard_size=40"]  # ten training shards


def ranks(number: int) -> tuple[str, ...]:
    one = (sys.executable, "-m", "rearkit")
    many = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={number}",
        "-m",
        "rearkit",
    )
    return one if number == 1 else many


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tokenizer is fitted."""
    out = tmp_path_factory.mktemp("ranks") / "run"
    for stage in ("data", "tokenizer"):
        finish(rearkit(stage, str(SMOKE), *SMALL, f"--out={out}"))
    return out


def copied(prepared: Path, name: str) -> Path:
    shutil.copytree(prepared, prepared.with_name(name))
    return prepared.with_name(name)


def tokens(out: Path, number: int, *options: str, code: int = 0) -> str:
    return finish(rearkit("tokens", str(SMOKE), *SMALL, f"--out={out}", *options, launcher=ranks(number)), code)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "tokens").glob("*.tar")}


@pytest.fixture(scope="module")
def tokenized(prepared: Path) -> Path:
    out = copied(prepared, "tokens-1")
    tokens(out, 1)
    return out


def result(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "tokens" / "stage.json").read_text())["result"]
    return found


@pytest.mark.parametrize("number", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_token_shards_are_the_same_on_any_number_of_ranks(number: int, prepared: Path, tokenized: Path) -> None:
    out = copied(prepared, f"tokens-{number}")
    output = tokens(out, number)
    assert "codes in use" in output and output.count("finished in") == 1
    assert shards(out) == shards(tokenized) and len(shards(out)) == 13
    assert (out / "tokens" / "shards.json").read_bytes() == (tokenized / "tokens" / "shards.json").read_bytes()
    assert result(out) == result(tokenized)


@pytest.mark.slow
def test_a_rank_killed_while_it_tokenizes_costs_its_shard_only(prepared: Path, tokenized: Path) -> None:
    out = copied(prepared, "killed")
    process = rearkit("tokens", str(SMOKE), *SMALL, f"--out={out}", launcher=ranks(2))
    deadline = time.monotonic() + 60
    while len(list((out / "tokens").glob("train-*.tar"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    second = max(pid for pid in descendants(process.pid) if rank_of(pid) == 1)
    os.kill(second, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    before = {path.name: path.stat().st_mtime_ns for path in (out / "tokens").glob("*.tar")}
    assert 2 <= len(before) < 13
    assert "going on from where it stopped" in tokens(out, 2)
    assert shards(out) == shards(tokenized)
    assert {name: (out / "tokens" / name).stat().st_mtime_ns for name in before} == before
    assert not list((out / "tokens").glob(".*"))


def rank_of(pid: int) -> int | None:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = [int(variable.partition(b"=")[2]) for variable in variables if variable.startswith(b"RANK=")]
    return found[0] if found else None


def evaluate(out: Path, number: int, *options: str) -> None:
    finish(rearkit("evaluate", str(SMOKE), *SMALL, f"--out={out}", *options, launcher=ranks(number)), timeout=400)


@pytest.fixture(scope="module")
def sampled(tokenized: Path) -> Path:
    """A run with samples of a backbone that has hardly learnt anything."""
    out = copied(tokenized, "sampled")
    for stage in ("train", "sample"):
        finish(rearkit(stage, str(SMOKE), *SMALL, f"--out={out}", *SHORT))
    return out


SHORT = ("--set=train.steps=2", "--set=train.warmup_steps=1", "--set=train.checkpoint_every=2")


@pytest.mark.slow
def test_scores_are_the_same_on_two_ranks(sampled: Path) -> None:
    results = []
    for number in (1, 2):
        out = copied(sampled, f"scored-{number}")
        evaluate(out, number, *SHORT, "--set=evaluate.batch=16")
        results.append((out / "evaluate" / "scores.json").read_bytes())
        results.append((out / "evaluate" / "nearest.png").read_bytes())
        assert not (out / "evaluate" / "shares").exists()
    assert results[:2] == results[2:]


@pytest.mark.slow
def test_scores_in_inceptions_space_are_the_same_on_two_ranks(
    sampled: Path, inception: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for number in (1, 2):
        out = copied(sampled, f"inception-{number}")
        monkeypatch.setitem(ENVIRONMENT, "REARKIT_CACHE", str(out.with_name(f"cache-{number}")))
        settings = ("evaluate.features='inception'", f"evaluate.feature_weights='{inception}'", "evaluate.batch=4")
        more = ("evaluate.max_reference=30", "evaluate.nearest_k=2")
        evaluate(out, number, *SHORT, *(f"--set={setting}" for setting in (*settings, *more)))
        results.append((out / "evaluate" / "scores.json").read_bytes())
    assert results[0] == results[1]


@pytest.mark.slow
def test_two_ranks_count_the_shards_that_one_counts(prepared: Path) -> None:
    source = f"--set=data.source={{name='shards', train='{prepared}/data', num_classes=10}}"
    results = []
    for number in (1, 2):
        out = prepared.with_name(f"counted-{number}")
        finish(rearkit("data", str(SMOKE), *TINY, f"--out={out}", source, launcher=ranks(number)))
        done = json.loads((out / "data" / "stage.json").read_text())
        results.append((done["digest"], done["result"]))
    assert results[0] == results[1] and results[0][1]["images"]["train"] == 500
