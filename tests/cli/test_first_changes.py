"""The first change that the page of a kind proposes, made to what ``new-plugin`` writes, keeps the contract."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

from rearkit.cli.new_plugin import write_plugin
from rearkit.testing import check_backbone, check_dataset, check_noise_schedule, check_regularizer, check_tokenizer

ROOT = Path(__file__).parents[2]


def written(kind: str, folder: Path) -> str:
    package = write_plugin("mine", folder, kind)
    return (package / "rearkit_mine" / f"{kind}.py").read_text(encoding="utf-8")


def proposed(kind: str) -> str:
    """The code that a page proposes; what it quotes has a language and the name of a file."""
    page = (ROOT / "docs" / "plugins" / f"{kind}.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"\n\n```\n(.*?)```", page.partition("## A first change")[2], re.DOTALL)
    return str(code)


def replaced(pattern: str, new: str, code: str) -> str:
    changed, count = re.subn(pattern, lambda _: new, code, flags=re.MULTILINE)
    assert count == 1, pattern
    return changed


def loaded(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace


def test_noise_with_its_replacements(tmp_path: Path) -> None:
    code = re.sub(r"^    # (def replacements|    )", r"    \1", written("noise", tmp_path), flags=re.MULTILINE)
    assert textwrap.indent(proposed("noise"), " " * 4) in code
    schedule = loaded(code)["StepNoise"](level=1.0)
    assert schedule.replacements
    check_noise_schedule(schedule)


def test_a_regularizer_that_logs_and_reads_all(tmp_path: Path) -> None:
    code = re.sub(
        r"^( +)# (reads = |found = |return \{)", r"\1\2", written("regularizer", tmp_path), flags=re.MULTILINE
    )
    names = loaded(code)
    assert names["FindNoise"].reads == ("logits_BNV", "images", "backbone")
    check_regularizer(lambda context: names["FindNoise"](names["FindNoiseSettings"](), context))


def test_a_tokenizer_with_hidden_layers(tmp_path: Path) -> None:
    code = written("tokenizer", tmp_path)
    encoder, decoder = proposed("tokenizer").splitlines()
    code = replaced(r"self\.encoder = .*$", encoder, code)
    names = loaded(replaced(r"self\.decoder = .*$", decoder, code))
    tokenizer = names["PatchTokenizer"](names["PatchSettings"]())
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 3
    check_tokenizer(tokenizer, lambda: names["PatchTokenizer"](names["PatchSettings"]()))


def test_a_backbone_with_normalised_queries(tmp_path: Path) -> None:
    norms, _, returned = proposed("backbone").splitlines()
    code = replaced(r"^(?=        self\.norm1 = )", f"        {norms}\n", written("backbone", tmp_path))
    code = replaced(r"return q_BHTh, k_BHTh, v_BHTh$", returned, code)
    names = loaded(code)
    check_backbone(lambda space: names["Transformer"](names["TransformerSettings"](), space))


def test_a_dataset_with_a_third_shape(tmp_path: Path) -> None:
    code = replaced(r"num_classes = 2$", "num_classes = 3", written("dataset", tmp_path))
    code = replaced(r'\["disc", "square"\]', '["disc", "square", "diamond"]', code)
    code = replaced(r"^(?=        colour = )", textwrap.indent(proposed("dataset"), " " * 8), code)
    check_dataset(loaded(code)["Shapes"](train_images=30, held_out_images=30))
