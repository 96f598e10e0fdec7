from __future__ import annotations

import pytest
import torch

from rearkit.system.distributed import local_device


# With one visible device, srun has given each rank its own: `--gpus-per-task=1`, `--gpu-bind`.
@pytest.mark.parametrize(("visible", "local", "expected"), [(4, "3", 3), (4, "0", 0), (1, "3", 0)])
def test_a_rank_has_the_device_of_its_place_or_the_only_one(
    visible: int, local: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", local)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert local_device(torch.device("cuda")) == torch.device("cuda", expected)
    assert chosen == [torch.device("cuda", expected)]
    assert local_device(torch.device("cpu")) == torch.device("cpu")
