"""``evaluate RECIPE --tokenizer`` in a folder without a run: what it needs is run, and what remains is said."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from rearkit.cli.main import cli

SETTINGS = (
    "device=cpu", "data.source.train_per_class=4", "data.source.held_out_per_class=1", "tokenizer.fit.steps=1",
    "tokenizer.fit.warmup_steps=0", "tokenizer.fit.batch=4", "tokenizer.fit.min_psnr=0", "evaluate.classifier.steps=1",
    "evaluate.classifier.min_accuracy=0",
)  # fmt: skip


def test_a_tokenizer_is_scored_with_one_command(tmp_path: Path) -> None:
    line = ["evaluate", "smoke", "--tokenizer", f"--out={tmp_path / 'run'}", *(f"--set={one}" for one in SETTINGS)]
    result = CliRunner().invoke(cli, line)
    assert result.exit_code == 0, result.output
    assert "data: 40 training and 10 held-out images" in result.output and "rFID" in result.output
    assert "next: python -m rearkit tokens with the same recipe" in result.output
