"""A whole diagnosis, of a tiny model and of a run's folder through the command line's functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from rearkit.analysis.diagnose import Diagnosis, diagnose, from_plain, measure, read_diagnosis
from rearkit.analysis.groups import SWEEP
from rearkit.analysis.table import Group, Table
from rearkit.errors import RearkitError
from rearkit.model import build
from rearkit.pipeline import run
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.tables import Recipe
from rearkit.reports.charts import draw
from rearkit.reports.compare import compare, diagnose_and_compare
from rearkit.reports.comparison_page import gather, outdated
from rearkit.reports.diagnosis import charts, screen_tables, summary
from rearkit.stages.run_folder import RunFolder
from rearkit.stages.stage import stage_key
from rearkit.stages.tokens import token_data
from rearkit.stages.train import STAGE as TRAIN
from rearkit.system.files import write_json
from rearkit.tokenization.quality import survival

DONE = "stage.json"
FILE = "diagnosis.json"

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.toml"


class Bijection(nn.Module):
    """A tokenizer of 1×1 images whose codes and images are one to one: code v is grey v/3."""

    num_tokens, codebook_size, embedding_dim, image_size = 1, 4, 1, 1

    def __init__(self, forgets: bool = False) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.forgets = forgets

    def decode(self, tokens_BN: Tensor) -> Tensor:
        return (tokens_BN.float() / 3).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)

    def encode(self, images_B3RR: Tensor) -> Tensor:
        codes = (images_B3RR[:, 0, 0] * 3).round().long()
        return codes // 2 * 2 if self.forgets else codes

    def codebook(self) -> Tensor:
        return torch.arange(4.0)[:, None]


def test_all_tokens_of_a_bijection_survive_and_half_of_one_that_forgets() -> None:
    tokens = torch.arange(4).repeat(5)[:, None]
    assert survival(Bijection(), tokens, 3) == 1.0
    assert survival(Bijection(forgets=True), tokens, 3) == 0.5


def measured(tiny: Callable[..., Recipe]) -> Diagnosis:
    model = build(tiny())
    model.backbone.eval()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randint(12, (8, 16), generator=generator), torch.arange(8)) for _ in range(2)]
    return measure(model, batches, batches, None)


def test_a_diagnosis_goes_to_plain_values_and_back(tiny: Callable[..., Recipe]) -> None:
    found = measured(tiny)
    assert from_plain(attrs.asdict(found)) == found
    assert (found.images, len(found.probes), found.survival_generated) == (16, 2, None)
    assert [one.replaced for one in found.own_draws] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    assert found.own_draws[0] == found.random_codes[0]
    named = {"one": [found, found], "two": [found]}
    assert len(screen_tables(named)) == 3
    assert summary(named)[0][1][0].endswith("± 0.000")
    drawn = charts(named)
    assert len(drawn) == 7
    assert [series.name for series in drawn[0].series] == ["one", "two"]
    assert "at 0% context replaced" in drawn[0].alt
    assert draw(drawn[0]).startswith("<svg")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    changes = ["train.steps=6", "train.validate_every=3", "tokenizer.fit.steps=8", "sample.num_images=20"]
    recipe = load_recipe(SMOKE, [*changes, "evaluate.classifier.steps=20"])
    return run(recipe, tmp_path_factory.mktemp("runs") / "smoke")


def test_a_run_is_diagnosed_once_and_shown_in_its_report(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    compare([finished.path], page)
    assert "Not made yet" in page.read_text()
    diagnose_and_compare([finished.path], page, 50)
    assert "Linear recovery of the token about to be written" in page.read_text()
    assert 'id="diagnosis"' in (finished.path / "report.html").read_text()
    known = read_diagnosis(finished)
    monkeypatch.setattr("rearkit.analysis.diagnose.measure", None)
    assert diagnose(finished, 50) == known
    (finished.path / FILE).write_text("damaged")
    with pytest.raises(TypeError):  # it would be measured anew
        diagnose(finished, 50)


@pytest.fixture
def copied(finished: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "copied")))


def test_what_is_of_earlier_weights_is_marked_or_left_out(
    finished: RunFolder, copied: RunFolder, tmp_path: Path
) -> None:
    whole = diagnose(finished, 50)
    assert whole.survival_generated is not None
    shutil.copyfile(finished.path / FILE, copied.path / FILE)
    assert read_diagnosis(copied) == whole
    assert outdated([Group("copied", [copied])]) == []
    trained = copied.done("train")
    assert trained is not None
    write_json(copied.stage("train") / DONE, {**trained, "digest": "another"})
    assert read_diagnosis(copied) is None
    compare([copied.path], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "other inputs: sample, evaluate; run: python -m rearkit run" in page and "Not made yet" in page
    assert diagnose(copied, 50).survival_generated is None


def test_weights_are_not_measured_with_another_tokenizer(
    finished: RunFolder, copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnose(finished, 50)
    shutil.copyfile(finished.path / FILE, copied.path / FILE)
    whole = read_diagnosis(copied)
    run(load_recipe(copied.path / "recipe.toml", ["tokenizer.fit.lr=5e-3"]), copied.path, only="tokenizer")
    assert whole is not None and read_diagnosis(copied) is None
    monkeypatch.setattr("rearkit.analysis.diagnose.measure", None)
    with pytest.raises(RearkitError, match=r"diagnose: needs stage 'tokens', which was last run with .* run: python"):
        diagnose(copied, 50)
    # Back at the same tokenizer, its diagnosis is one again.
    run(load_recipe(finished.path / "recipe.toml"), copied.path, only="tokenizer")
    assert diagnose(copied, 50) == whole


def test_colours_and_legend_are_those_of_the_groups(finished: RunFolder, copied: RunFolder, tmp_path: Path) -> None:
    diagnose(finished, 50)
    (copied.path / FILE).unlink(missing_ok=True)
    page = gather([Group("a", [copied]), Group("b", [finished]), Group("c", [])], Table((), (), ()), "t")
    assert len(page["diagnosis"]) == 7
    for drawing in page["diagnosis"]:
        assert [series.name for series in drawing["chart"].series] == ["a", "b", "c"]
        assert "var(--series-2)" in drawing["svg"] and "var(--series-1)" not in drawing["svg"]
        assert "a from" not in drawing["chart"].alt and "b from" in drawing["chart"].alt
    assert page["diagnosis_rows"][0][1][::2] == ["–", "–"]
    assert page["differences"] == []
    compare([copied.path, finished.path], tmp_path / "page.html")
    assert '<li style="--key: var(--series-2)">smoke</li>' in (tmp_path / "page.html").read_text()


def test_tokens_made_while_training_are_made_for_a_diagnosis_too(finished: RunFolder, copied: RunFolder) -> None:
    recipe = load_recipe(copied.path / "recipe.toml", ["tokens.on_the_fly=true"])
    run(recipe, copied.path, only="tokens")
    assert token_data(copied, "train") is None
    # As if it had been trained on them.
    trained = copied.done("train")
    assert trained is not None
    write_json(copied.stage("train") / DONE, {**trained, "key": stage_key(TRAIN, recipe, copied)})
    before, after = diagnose(finished, 50), diagnose(copied, 50)
    assert after.probes == before.probes  # fitted on the same tokens


def test_blocks_are_counted_to_the_deepest(tiny: Callable[..., Recipe]) -> None:
    found = measured(tiny)
    shallow = attrs.evolve(found, probes=found.probes[:1])
    *_, probes = screen_tables({"shallow": [shallow], "deep": [found]})
    assert [str(column.header) for column in probes.columns] == ["", "embedding of", "0", "1"]


def test_a_run_without_held_out_images_is_refused(copied: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rearkit.analysis.diagnose.token_data", lambda folder, split: None)
    (copied.path / FILE).unlink(missing_ok=True)
    with pytest.raises(RearkitError, match=r"run has none; give \[data\.source\] held_out"):
        diagnose(copied, 50)


def test_a_folder_without_a_trained_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RearkitError, match="no trained run"):
        diagnose(RunFolder(tmp_path))
    with pytest.raises(RearkitError, match="neither a run of rearkit nor a sweep; give the folder of a run"):
        compare([tmp_path])
    with pytest.raises(RearkitError, match="gone: no such folder"):
        compare([tmp_path / "gone"])
    write_json(tmp_path / SWEEP, {"sweep": "s", "runs": {"a": ["a-s0"]}, "published": {}, "published_as": ""})
    with pytest.raises(RearkitError, match=f"{tmp_path.name}: no trained run in it yet; run: .* sweep"):
        compare([tmp_path])
