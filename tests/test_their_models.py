"""The two ideas on somebody else's transformer: GPT-2's shape, with outputs as Hugging Face's models return them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rearkit
from rearkit.contracts import RegularizerContext
from rearkit.objective import Loss

N, V, Z, D, LAYERS = 6, 16, 4, 16, 4


@dataclasses.dataclass
class Output:
    """As a Hugging Face model's: ``hidden_states`` has the embedding first, and the last one is normed."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(out.transpose(1, 2).flatten(2)), None


class Block(nn.Module):
    """Returns a tuple, as those of the library do."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(D), nn.LayerNorm(D), Attention()
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        x = x + self.attn(self.ln_1(x))[0]
        return x + self.mlp(self.ln_2(x)), None


class GPT2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V + 1, D), nn.Embedding(N + 1, D)
        self.h = nn.ModuleList(Block() for _ in range(LAYERS))
        self.ln_f, self.lm_head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)

    def forward(self, input_ids: Tensor) -> Output:
        x = self.wte(input_ids) + self.wpe.weight
        states = [x]
        for block in self.h:
            x = block(x)[0]
            states.append(x)
        x = states[-1] = self.ln_f(x)
        return Output(self.lm_head(x), tuple(states))


def parts() -> tuple[GPT2, rearkit.Objective, Tensor, rearkit.objective.NoisyContext]:
    torch.manual_seed(0)
    context = RegularizerContext(D, LAYERS, torch.randn(V, Z))
    regularizer = rearkit.make("regularizer", "codebook-embedding", context, projection_dim=8)
    tokens = torch.randint(V, (3, N))
    noise = rearkit.make("noise", "fixed", rate=0.5)
    noisy = rearkit.corrupt(tokens, noise, 0.0, V, torch.Generator().manual_seed(0))
    return GPT2(), rearkit.Objective({"codebook-embedding": regularizer}), tokens, noisy


def step(model: nn.Module, blocks: nn.ModuleList, objective: rearkit.Objective, tokens: Tensor, noisy: object) -> Loss:
    """A step of their loop: the sequence begins with a token of its own, so that position i predicts token i."""
    input_ids = F.pad(noisy.tokens_BN, (1, 0), value=V)  # type: ignore[attr-defined]
    with rearkit.capture({layer: blocks[layer] for layer in objective.layers}) as hidden:
        logits = model(input_ids).logits
    loss: Loss = objective(logits, hidden, tokens, noisy.replaced_BN, prefix_length=1)  # type: ignore[attr-defined]
    loss.total.backward()
    return loss


def test_a_blocks_output_is_the_hidden_state_after_its_number() -> None:
    """As `docs/python.md` says; and the loss is the same by either way."""
    gpt, objective, tokens, noisy = parts()
    captured = step(gpt, gpt.h, objective, tokens, noisy)
    states = gpt(F.pad(noisy.tokens_BN, (1, 0), value=V))
    hidden = {layer: states.hidden_states[layer + 1] for layer in objective.layers}
    returned = objective(states.logits, hidden, tokens, noisy.replaced_BN, prefix_length=1)
    # The decode layer is the last of four blocks here, whose output is normed.
    assert objective.layers == (0, LAYERS - 1)
    encode = "regularizer/codebook-embedding/encode"
    torch.testing.assert_close(returned.parts[encode], captured.parts[encode])
    assert not torch.allclose(states.hidden_states[LAYERS], hidden[0])


@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_compiled_it_learns_the_same(how: str) -> None:
    torch._dynamo.reset()
    gpt, objective, tokens, noisy = parts()
    other, heads = copy.deepcopy(gpt), copy.deepcopy(objective)
    expected = step(gpt, gpt.h, objective, tokens, noisy)
    model: nn.Module = other
    if how == "whole":
        model = torch.compile(other, backend="aot_eager")  # type: ignore[assignment]
    else:
        for block in other.h:
            block.compile(backend="aot_eager")
    found = step(model, other.h, heads, tokens, noisy)
    torch.testing.assert_close(found.total, expected.total)
    for one, two in zip(gpt.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-4)


def test_it_trains_in_bfloat16() -> None:
    gpt, objective, tokens, noisy = parts()
    expected = step(gpt, gpt.h, objective, tokens, noisy).total
    gpt, objective, tokens, noisy = parts()
    loss = step(gpt.bfloat16(), gpt.h, objective.bfloat16(), tokens, noisy)
    assert abs(loss.total.item() - expected.item()) < 0.05
    assert all(p.grad.isfinite().all() for p in (*gpt.parameters(), *objective.parameters()) if p.grad is not None)


@pytest.fixture
def _one_rank(tmp_path: Path) -> Iterator[None]:
    # Another test of this process may have started one.
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
def test_data_parallel_it_learns_the_same() -> None:
    gpt, objective, tokens, noisy = parts()
    other, heads = copy.deepcopy(gpt), copy.deepcopy(objective)
    expected = step(gpt, gpt.h, objective, tokens, noisy)
    found = step(DistributedDataParallel(other), other.h, heads, tokens, noisy)
    torch.testing.assert_close(found.total, expected.total)
    for one, two in zip(gpt.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
