"""A whole diagnosis, of a tiny model and of a run's folder through the command line's functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from rearkit.comparison.compare import compare, diagnose_and_compare
from rearkit.comparison.groups import SWEEP
from rearkit.diagnosis.diagnose import FILE, diagnose, from_plain, measure, read_diagnosis
from rearkit.diagnosis.show import charts, screen_tables, summary
from rearkit.errors import RearkitError
from rearkit.evaluation.charts import draw
from rearkit.files import write_json
from rearkit.model import as_module, build
from rearkit.pipeline import run
from rearkit.recipe import Recipe
from rearkit.recipe_files import load_recipe
from rearkit.stages import RunFolder
from rearkit.tokenization.quality import survival

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


def test_a_diagnosis_goes_to_plain_values_and_back(tiny: Callable[..., Recipe]) -> None:
    model = build(tiny())
    as_module(model.backbone).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randint(12, (8, 16), generator=generator), torch.arange(8)) for _ in range(2)]
    found = measure(model, batches, batches, None)
    assert from_plain(attrs.asdict(found)) == found
    assert (found.images, len(found.probes), found.survival_generated) == (16, 2, None)
    assert [one.replaced for one in found.own_draws] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    assert found.own_draws[0] == found.random_codes[0]
    named = {"one": [found, found], "two": [found]}
    assert len(screen_tables(named)) == 3
    assert summary(named)[0][1][0].endswith("± 0.000")
    drawn = charts(named)
    assert len(drawn) == 6
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
    monkeypatch.setattr("rearkit.diagnosis.diagnose.measure", None)
    assert diagnose(finished, 50) == known
    (finished.path / FILE).write_text("damaged")
    with pytest.raises(TypeError):  # it would be measured anew
        diagnose(finished, 50)


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
