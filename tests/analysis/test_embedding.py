from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.analysis.embedding import LinearProbe, awareness, probe_layers

V, N, Z, D, P = 16, 10, 3, 12, 2


def codebook() -> Tensor:
    return torch.randn(V, Z, generator=torch.Generator().manual_seed(0))


def batches(seed: int, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(V, (16, N), generator=generator), torch.zeros(16, dtype=torch.int64)) for _ in range(count)]


class Planted:
    """Block 0 holds a linear map of the current token's embedding, block 1 of the next one's, block 2 noise.

    A token follows from the one before it in no way, so that a place knows one of the two at most.
    """

    prefix_length, hidden_size, num_layers = P, D, 3

    def __init__(self, answer: str = "right") -> None:
        self.answer = answer
        self.map_ZD = torch.randn(Z, D, generator=torch.Generator().manual_seed(1))

    def forward(
        self, tokens_BN: Tensor, classes_B: Tensor, layers: Sequence[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        told_BND = codebook()[tokens_BN] @ self.map_ZD + 0.5
        hidden = {
            0: F.pad(told_BND, (0, 0, P, 0)),
            1: F.pad(told_BND, (0, 0, P - 1, 1)),
            2: torch.randn(len(tokens_BN), P + N, D, generator=torch.Generator().manual_seed(int(tokens_BN.sum()))),
        }
        guess = tokens_BN if self.answer == "right" else (tokens_BN + 1) % V
        return F.one_hot(F.pad(guess, (0, 1)), V).float(), {layer: hidden[layer] for layer in layers}


def test_a_probe_recovers_a_planted_linear_map() -> None:
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(2))
    map_DZ = torch.randn(D, Z, generator=torch.Generator().manual_seed(3))
    probe = LinearProbe()
    for part in x.split(64):
        probe.add(part, part @ map_DZ + 2.0)
    found = probe.solve()
    assert torch.allclose(found[:-1].float(), map_DZ, atol=1e-4)
    assert torch.allclose(found[-1].float(), torch.full((Z,), 2.0), atol=1e-4)
    assert torch.allclose(probe.mean.float(), (x @ map_DZ + 2.0).mean(0), atol=1e-4)


def test_widths_that_say_the_same_have_a_solution() -> None:
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(2)).repeat(1, 4)
    probe = LinearProbe()
    probe.add(x, x[:, :2])
    assert torch.allclose(F.pad(x, (0, 1), value=1.0).double() @ probe.solve(), x[:, :2].double(), atol=1e-4)


def test_probes_tell_the_block_and_the_place_that_know_an_embedding() -> None:
    first, second, third = probe_layers(Planted(), batches(5), batches(6), codebook())  # type: ignore[arg-type]
    assert first.current.r2 == pytest.approx(1, abs=1e-5)
    assert first.current.cosine == pytest.approx(1, abs=1e-5)
    assert second.next.r2 == pytest.approx(1, abs=1e-5)
    for blind in (first.next, second.current, third.current, third.next):
        assert -0.2 < blind.r2 < 0.05
    assert [probe.layer for probe in (first, second, third)] == [0, 1, 2]


def test_right_codes_have_cosine_1_and_no_wrong_ones() -> None:
    found = awareness(Planted(), batches(5), codebook())  # type: ignore[arg-type]
    assert found.all == pytest.approx(1)
    assert found.wrong is None


def test_wrong_codes_have_the_cosine_of_their_embeddings() -> None:
    unit = F.normalize(codebook(), dim=-1)
    expected = (unit * unit.roll(-1, 0)).sum(-1)
    found = awareness(Planted("wrong"), batches(5, 200), codebook())  # type: ignore[arg-type]
    assert found.wrong == found.all == pytest.approx(expected.mean().item(), abs=0.01)
    assert found.chance == pytest.approx(unit.mean(0).pow(2).sum().item(), abs=0.01)
