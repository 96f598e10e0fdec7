"""Compare a training step with the straightforward implementation of the same network: seconds and peak memory.

"Straightforward" is the network as one would first write it: a full causal mask passed to attention, position tables
repeated for each sample, the published dropout modules, modulations as chains of tensors, torch's default AdamW. It
has rearkit's parameter names, and the same weights, batch, objective (noisy context, codebook embedding) and clipping.
Each contender runs in its own process, so that peak memory can be measured for each; they take steps in turns. Loss and
gradient norm are compared without dropout; timed steps use the published dropout of 0.1, or ``--dropout``. Neither
contender is compiled.

Where the time goes (S size, batch 4, 2 threads, torch 2.14.1): a step's matrix products are 1.453 TFLOP. A third of a
block's are modulations, which differ from sample to sample and so cannot be shared. Their least time depends on the
processor.

- On an AMD EPYC with AVX-512 (family 25, model 17) torch's default product (MKL) reaches 186 GFLOP/s at (1032, 768) ×
  (768, 3072), and oneDNN 206: 7.8 s and 7.1 s per step. The straightforward step takes 9.8 s at best and 9.9 to 10.2 s
  in the median, rearkit's 8.0 to 8.1 s and 8.2 s: 1.20 to 1.22 times as fast (median of pairs; 1.20 by the best), at
  0.71 of the memory. So `rearkit.layers.lean` uses oneDNN on processors with AVX-512, and MKL elsewhere.
- Without AVX-512 (family 25, model 1) MKL reached 135 GFLOP/s and oneDNN 138, less in the backward pass: 10.6 s. The
  straightforward step took 12.1 s at best and 12.9 s in the median, so no implementation of the same arithmetic could
  be more than 1.14 to 1.2 times as fast. rearkit's took 11.1 s and 12.0 s (1.08×, and 1.12× in a slower hour), before
  the last three improvements below. OpenBLAS, which comes with numpy, was a tenth faster than MKL at best and no faster
  in the median; its threads, which wait busily beside torch's, slow all other work by a third or more: not used.

The rest of the time: drawing dropout masks, a tenth of the straightforward step (torch draws a number per entry; four
entries can share one, and numpy draws it in half the time); multiplying by bool masks (torch converts them to float
first, and is fast at that only from integers); elementwise chains; AdamW. Autograd pads gradients of slices of keys and
values with zeros before it adds them, unless attention adds them in place itself. And freed memory is returned to the
system, whose new pages cost 0.5 s per step: an elementwise operation on (4, 258, 3072) took 6 to 17 ms, and takes 1 to
2 ms now that `rearkit.system.memory` keeps freed memory.

Memory: 917 MB each for weights, gradients and both of AdamW's moments. The straightforward network also keeps 4 GB of
activations, half of which (norms, modulated norms, activations, three copies of the attention weights) are cheap to
recompute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN, HEADS, TOKENS, CODES, CLASSES, EMBEDDING = 768, 16, 256, 1024, 1000, 256
CONTENDERS = ("straightforward", "rearkit")


class StraightAttention(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.q_norm, self.k_norm = (nn.LayerNorm(HIDDEN // HEADS, eps=1e-6) for _ in range(2))
        self.rate, self.dropout = rate, nn.Dropout(rate)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, HEADS, D // HEADS).permute(2, 0, 3, 1, 4)
        rate = self.rate if self.training else 0.0
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=mask, dropout_p=rate)
        return self.dropout(self.proj(x.transpose(1, 2).reshape(B, T, D)))


class StraightMLP(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
        self.act, self.dropout1, self.dropout2 = nn.GELU(), nn.Dropout(rate), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.fc2(self.dropout1(self.act(self.fc1(x)))))


class StraightBlock(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, eps=1e-6), nn.LayerNorm(HIDDEN, eps=1e-6)
        self.attn, self.mlp = StraightAttention(rate), StraightMLP(rate)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 6 * HIDDEN))

    def forward(self, x: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, mask)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class StraightFinalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(HIDDEN, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN, 2 * HIDDEN))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.norm_final(x) * (1 + scale) + shift


class Straightforward(nn.Module):
    """The network as one would first write it, with the names of rearkit's parameters."""

    def __init__(self, layers: int, rate: float) -> None:
        super().__init__()
        places = TOKENS + 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.embeddings = nn.Embedding(CODES + 1 + CLASSES + 1, HIDDEN)
        self.pos_embed = nn.Parameter(torch.zeros(1, places, HIDDEN))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, places, HIDDEN))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, places, HIDDEN))
        self.blocks = nn.ModuleList(StraightBlock(rate) for _ in range(layers))
        self.adaln_before_head, self.lm_head = StraightFinalNorm(), nn.Linear(HIDDEN, CODES)
        self.register_buffer("mask", torch.full((places, places), -torch.inf).triu(1), persistent=False)

    def forward(self, tokens: Tensor, classes: Tensor, layers: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        batch, ids = len(tokens), classes + CODES + 1
        x = self.embeddings(torch.cat([ids[:, None], tokens], dim=1))
        x = torch.cat([self.cls_token.repeat(batch, 1, 1), x], dim=1) + self.pos_embed.repeat(batch, 1, 1)
        target = self.target_aware_pos_embed.repeat(batch, 1, 1)
        nothing = torch.zeros_like(target[:, :1])
        x = x + torch.cat([nothing, target[:, 2:], nothing], dim=1)
        condition = self.embeddings(ids)[:, None] + self.timesteps_embeddings.repeat(batch, 1, 1)
        hidden = {}
        for index, block in enumerate(self.blocks):
            x = block(x, self.mask, condition)
            if index in layers:
                hidden[index] = x
        return self.lm_head(self.adaln_before_head(x[:, 1:], condition[:, 1:])), hidden


class Contender:
    """One of the two networks with its optimizer; both have rearkit's objective, the same weights and batch."""

    def __init__(self, name: str, layers: int, batch: int, rate: float) -> None:
        from rearkit.components.backbones.dit_ar import DiTAR
        from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
        from rearkit.components.regularizers.codebook_embedding import CodebookEmbedding, CodebookEmbeddingSettings
        from rearkit.contracts import RegularizerContext, TokenSpace
        from rearkit.objective import Objective

        settings = DiTARSettings(
            hidden_size=HIDDEN, num_layers=layers, num_heads=HEADS, dropout=rate, attention_dropout=rate
        )
        ours = name == "rearkit"
        space = TokenSpace(TOKENS, CODES, CLASSES)
        self.model: Any = DiTAR(settings, space) if ours else Straightforward(layers, rate)
        torch.manual_seed(0)
        context = RegularizerContext(HIDDEN, layers, torch.randn(CODES, EMBEDDING))
        self.objective = Objective({"codebook-embedding": CodebookEmbedding(CodebookEmbeddingSettings(), context)})
        for _, parameter in sorted(self.model.named_parameters()):  # open modulations too, or gradients would be zero
            nn.init.normal_(parameter, std=0.02)
        self.parameters = [*self.model.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, betas=(0.9, 0.96), fused=ours or None)
        self.tokens, self.context = torch.randint(CODES, (2, batch, TOKENS))
        self.classes = torch.randperm(CLASSES)[:batch]

    def loss(self) -> Tensor:
        logits, hidden = self.model(self.context, self.classes, self.objective.layers)
        return self.objective(logits, hidden, self.tokens, self.tokens != self.context, 2).total

    def compare(self) -> dict[str, float]:
        """Return loss and gradient norm of a step without dropout."""
        self.model.eval()
        loss = self.loss()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in self.parameters])
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "grad_norm": norm.item()}

    def step(self) -> dict[str, float]:
        """Train for one step, and return its seconds, processor seconds and peak memory in MiB."""
        self.model.train()
        started, processor = time.perf_counter(), time.process_time()
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        seconds, processor = time.perf_counter() - started, time.process_time() - processor
        return {"seconds": seconds, "processor": processor, "peak_mib": peak_mib()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(options: argparse.Namespace) -> None:
    """Run one contender: answer each line of standard input with a line of JSON."""
    from rearkit.system.memory import freed_memory_kept

    torch.set_num_threads(options.threads)
    torch.randn(64, 64) @ torch.randn(64, 64)
    import rearkit.objective  # noqa: F401  so that the baseline holds what both import

    baseline = peak_mib()
    contender = Contender(options.contender, options.layers, options.batch, options.dropout)
    with freed_memory_kept() if options.contender == "rearkit" else contextlib.nullcontext():  # as in training
        for line in sys.stdin:
            answer = contender.compare() if line.strip() == "compare" else contender.step()
            print(json.dumps(answer | {"baseline_mib": baseline}), flush=True)


class Worker:
    """A contender in its own process, so that its peak memory can be measured."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, f"--contender={name}"]
        command += [f"--{key}={getattr(options, key)}" for key in ("layers", "batch", "dropout", "threads")]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def gemm_rates() -> dict[str, float]:
    """Return the speed in GFLOP/s of a step's largest products, by torch's default (MKL) and by oneDNN."""
    from rearkit.layers.lean import product

    rows, rates = 4 * (TOKENS + 2), {}
    x, weight = torch.randn(rows, HIDDEN), torch.randn(4 * HIDDEN, HIDDEN)
    for name, multiply in (("default", F.linear), ("oneDNN", product)):
        seconds = []
        for _ in range(6):
            started = time.perf_counter()
            multiply(x, weight)
            seconds.append(time.perf_counter() - started)
        rates[name] = 2 * x.numel() * len(weight) / min(seconds) / 1e9
    return rates


def step_flops(layers: int, batch: int) -> int:
    """Return the floating-point operations of a step's matrix products, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        contender = Contender("straightforward", layers, batch, 0.0)
    with FlopCounterMode(display=False) as counter:
        contender.loss().backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        work(options)
        return
    torch.set_num_threads(options.threads)
    flops, rates = step_flops(options.layers, options.batch), gemm_rates()
    print(f"products of a step: {flops / 1e12:.3f} TFLOP")
    for name, rate in rates.items():
        print(f"GEMM, {name:>8}: {rate:6.1f} GFLOP/s, so a step takes at least {flops / rate / 1e9:.2f} s")
    workers = {name: Worker(name, options) for name in CONTENDERS}
    plain = {name: worker.ask("compare") for name, worker in workers.items()}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for step in range(options.steps + 1):
        for name, worker in workers.items():
            measured = worker.ask("step")
            if step:  # the first makes the optimizer's state
                found[name].append(measured)
    for worker in workers.values():
        worker.process.stdin.close()  # type: ignore[union-attr]
        worker.process.wait()
    memory = {name: found[name][-1]["peak_mib"] - found[name][-1]["baseline_mib"] for name in CONTENDERS}
    for name in CONTENDERS:
        seconds = [measured["seconds"] for measured in found[name]]
        processor = min(measured["processor"] for measured in found[name])
        print(
            f"{name:>15}: best {min(seconds):6.2f} s, median {statistics.median(seconds):6.2f} s, "
            f"{processor:6.2f} s of processor; peak {memory[name]:7.1f} MiB; without dropout loss "
            f"{plain[name]['loss']:.6f}, gradient norm {plain[name]['grad_norm']:.6f}"
        )
    straight, ours = (found[name] for name in CONTENDERS)
    pairs = [a["seconds"] / b["seconds"] for a, b in zip(straight, ours, strict=True)]
    best = min(a["seconds"] for a in straight) / min(b["seconds"] for b in ours)
    print(
        json.dumps(
            {
                "speed": round(statistics.median(pairs), 3),
                "speed_of_best": round(best, 3),
                "processor": round(min(a["processor"] for a in straight) / min(b["processor"] for b in ours), 3),
                "memory": round(memory["rearkit"] / memory["straightforward"], 3),
                "loss_difference": abs(plain["rearkit"]["loss"] - plain["straightforward"]["loss"]),
            }
        )
    )


if __name__ == "__main__":
    main()
