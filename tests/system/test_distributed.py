from __future__ import annotations

import re

import pytest
import torch

from rearkit.errors import RearkitError
from rearkit.system.distributed import local_device


# With one visible device, srun has given each rank its own: `--gpus-per-task=1`, `--gpu-bind`. A lone process may have
# another job's LOCAL_RANK.
@pytest.mark.parametrize(
    ("visible", "ranks", "local", "expected"), [(4, 8, "3", 3), (4, 4, "0", 0), (1, 8, "3", 0), (4, 1, "7", 0)]
)
def test_a_rank_has_the_device_of_its_place_or_the_only_one(
    visible: int, ranks: int, local: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert local_device(torch.device("cuda")) == torch.device("cuda", expected)
    assert chosen == [torch.device("cuda", expected)]
    assert local_device(torch.device("cpu")) == torch.device("cpu")


def test_more_ranks_than_devices_on_a_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("set"))
    told = "rank 11 is number 3 on its machine, counted from 0, and torch sees 2 GPUs there; start at most 2 ranks"
    with pytest.raises(RearkitError, match=re.escape(told)):
        local_device(torch.device("cuda"))
