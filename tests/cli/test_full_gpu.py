"""A GPU that is full is no bug, wherever torch says so: one line names the key to change."""

from __future__ import annotations

import pytest
import torch

from rearkit.cli.full_gpu import told_of_full_gpu
from rearkit.cli.main import main
from rearkit.errors import EXIT_USAGE
from rearkit.registry import plugins
from rearkit.registry.provenance import Blame

SAID = "CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 2 GiB is free."


def fail_in(package: str) -> BaseException:
    """Return the error as it comes out of a function of a package, called by one of the training's."""
    inner, outer = {"__name__": f"{package}.something"}, {"__name__": "rearkit.training.trainer"}
    exec("def work(error): raise error", inner)
    exec("def work(inner, error): inner(error)", outer)
    try:
        outer["work"](inner["work"], torch.cuda.OutOfMemoryError(SAID))  # type: ignore[operator]
    except RuntimeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("package", "remedy"),
    [
        ("rearkit.sampling", "a smaller [sample] batch"),
        ("rearkit.tokenization", "a smaller [tokens] batch"),
        ("rearkit_llamagen", "a smaller [train] micro_batch"),
    ],
)
def test_what_was_running_says_what_to_make_smaller(package: str, remedy: str) -> None:
    told = told_of_full_gpu(fail_in(package))
    assert told.startswith("the GPU is full: CUDA out of memory. Tried to allocate 6.00 GiB. GPU 0 has")
    assert remedy in told
    assert told_of_full_gpu(RuntimeError(SAID)) == ""


@pytest.mark.parametrize("debug", [False, True])
def test_a_full_gpu_is_told_in_one_line_and_blamed_on_no_plugin(
    debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*given: object, **more: object) -> None:
        raise fail_in("rearkit_llamagen")

    monkeypatch.setattr(plugins, "blamed", lambda error: Blame("the plugin", "somewhere"))
    monkeypatch.setattr("rearkit.cli.main.cli.main", work)
    with pytest.raises(SystemExit) as exit_:
        main(["--debug"] if debug else [])
    said = capsys.readouterr().err
    assert exit_.value.code == EXIT_USAGE
    assert said.splitlines()[-1].startswith("error: the GPU is full: ") and "the plugin" not in said
    assert ("Traceback" in said) == debug
