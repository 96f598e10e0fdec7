"""What a CUDA device computes and how fast: correctness against the CPU, training, sampling, beside plain versions.

    python benchmarks/gpu.py OUT [--budget 450] [--only right,train]

Each section is timed, guarded, and written to ``OUT/results.json`` as soon as it is done, so that a run that is cut off
leaves what it had. ``--dry`` shortens all loops and judges no number: for a stand-in device without a GPU. The last
line is a JSON object of ratios, and what failed. Figures of an H100 stand in ``docs/gpu.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rearkit.components.backbones import dit_ar_blocks
from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import DiTARSettings
from rearkit.contracts import TokenSpace
from rearkit.data.token_shards import TokenData
from rearkit.layers import lean
from rearkit.layers.fusing import can_fuse
from rearkit.model import build
from rearkit.recipe.loading import load_recipe
from rearkit.recipe.tables import Recipe
from rearkit.sampling.drawing import draw
from rearkit.sampling.graphs import GraphedBackbone
from rearkit.sampling.sampler import Sampler, balanced_classes
from rearkit.training import loop
from rearkit.training.batches import Batch
from rearkit.training.blocks import prepared_blocks
from rearkit.training.train_module import TrainModule
from rearkit.training.trainer import Trainer

RECIPES = Path(__file__).parents[1] / "recipes"
PEAK_FLOPS = 989e12  # of an H100 in bf16, dense, by its data sheet
# Forward and backward of an image, by torch's FlopCounterMode, which counts causal attention as if it were full.
TRAIN_FLOPS = {"s": 93.0e12 / 256, "l": 191.1e12 / 256}


class Report:
    """Results by name, written out at each one."""

    def __init__(self, folder: Path, budget: float, only: list[str] | None, dry: bool) -> None:
        self.folder, self.budget, self.only, self.dry = folder, budget, only, dry
        self.began = time.monotonic()
        self.results: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def note(self, name: str, value: Any) -> None:
        self.results[name] = value
        print(f"[{self.seconds():5.0f} s] {name}: {value}", flush=True)
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1, default=str))

    def judge(self, name: str, value: float, bound: float) -> None:
        self.note(name, {"value": value, "bound": bound, "ok": bool(self.dry or value <= bound)})

    def run(self, section: Callable[[Report], None], latest: float) -> None:
        """Run a section, unless more than a share ``latest`` of the budget is gone."""
        name = section.__name__
        if self.only and name not in self.only:
            return
        if self.seconds() > self.budget * latest:
            self.note(name, "left out: no time")
            return
        began = time.monotonic()
        try:
            section(self)
        except Exception as error:
            self.note(f"{name}/ERROR", f"{type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
        self.note(f"{name}/seconds", round(time.monotonic() - began, 1))
        torch.cuda.empty_cache()

    def failed(self) -> list[str]:
        return [
            name
            for name, value in self.results.items()
            if name.endswith("ERROR") or (isinstance(value, dict) and value.get("ok") is False)
        ]

    def timed(self, work: Callable[[], Any], warm: int = 3, repetitions: int = 10) -> float:
        """Median seconds of a call on the device."""
        for _ in range(warm):
            work()
        times = []
        for _ in range(2 if self.dry else repetitions):
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            work()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) * 1e-3)
        return statistics.median(times)


def recipe(size: str = "s", train: Any = None, sample: Any = None, device: str = "cuda", **backbone: Any) -> Recipe:
    """A published recipe without weights, validation and checkpoints, with some settings changed."""
    whole = load_recipe(RECIPES / f"rear_{size}_maskgit.toml")
    quiet = {"warmup_steps": 0, "log_every": 1, "validate_every": 0, "checkpoint_every": 10**6, "compile": False}
    return attrs.evolve(
        whole,
        device=device,
        train=attrs.evolve(whole.train, **quiet | (train or {})),
        sample=attrs.evolve(whole.sample, **(sample or {})),
        backbone=attrs.evolve(whole.backbone, settings=attrs.evolve(whole.backbone.settings, **backbone)),
        tokenizer=attrs.evolve(whole.tokenizer, weights=None),
    )


def random_tokens(count: int) -> TokenData:
    generator = np.random.default_rng(0)
    return TokenData.from_arrays(generator.integers(0, 1024, (count, 256)), generator.integers(0, 1000, count))


def small_backbone(dtype: torch.dtype = torch.float32) -> DiTAR:
    torch.manual_seed(0)
    table = DiTARSettings(hidden_size=192, num_layers=4, num_heads=4, dropout=0.0, attention_dropout=0.0)
    module = DiTAR(table, TokenSpace(64, 256, 10))
    with torch.no_grad():
        for parameter in module.parameters():  # modulations are born shut
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module.to(dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative distance in float64."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


def ceilings(report: Report) -> None:
    """What the card gives: copies, matrix products of the published sizes, norms of narrow rows."""
    report.note(
        "machine",
        [torch.cuda.get_device_name(), torch.__version__, torch.version.cuda, torch.backends.cudnn.version()],
    )
    copied = torch.randn(2, 2**20 if report.dry else 2**28, device="cuda")
    seconds = report.timed(lambda: copied[0].copy_(copied[1]))
    report.note("copy TB/s", copied.numel() * 4 / seconds / 1e12)
    for rows, inputs, outputs, dtype in (
        (66048, 768, 2304, torch.bfloat16),
        (66048, 768, 4608, torch.bfloat16),
        (66048, 3072, 768, torch.bfloat16),
        (33024, 1024, 4096, torch.bfloat16),
        (8192, 8192, 8192, torch.bfloat16),
        (128, 768, 3072, torch.bfloat16),
        (128, 768, 3072, torch.float32),
    ):
        x = torch.randn(rows, inputs, device="cuda", dtype=dtype)
        weight = torch.randn(outputs, inputs, device="cuda", dtype=dtype)
        seconds = report.timed(lambda x=x, weight=weight: F.linear(x, weight))
        rate = 2 * rows * inputs * outputs / seconds / 1e12
        report.note(f"product {rows}x{inputs}x{outputs} {str(dtype)[6:]} TFLOP/s", round(rate, 1))
    for width in (48, 64, 768):
        rows = 66048 * 16 if width < 100 else 66048
        x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)
        ones = torch.ones(width, device="cuda", dtype=torch.bfloat16)
        seconds = report.timed(lambda x=x, ones=ones, width=width: F.layer_norm(x, (width,), ones, ones))
        share = 2 * x.numel() * 2 / seconds / 3.0e12
        report.note(f"layer_norm[{width}] us, share of copy", [round(seconds * 1e6), round(share, 3)])


def right(report: Report) -> None:
    """Logits, gradients, graphs and losses of a small model against the CPU and against each other."""
    ids, classes = torch.randint(256, (6, 64)), torch.randint(11, (6,))
    forward_and_backward(report, ids, classes)
    block = small_backbone().cuda().eval().blocks[0]
    condition = dit_ar_blocks.Condition(torch.randn(6, 66, 192, device="cuda"), None)
    x = torch.randn(6, 66, 192, device="cuda")
    report.judge(
        "compiled block against eager", distance(torch.compile(block.forward)(x, condition), block(x, condition)), 1e-5
    )
    for dtype, bound in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
        graphs_against_forward(report, dtype, bound, ids, classes)
    losses_of_settings(report)


def forward_and_backward(report: Report, ids: Tensor, classes: Tensor) -> None:
    def run(module: nn.Module, device: str) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _ = module(ids.to(device), classes.to(device))
        F.cross_entropy(logits[:, :64].flatten(0, 1).float(), ids.flatten().to(device)).backward()
        return logits.detach(), {n: p.grad for n, p in module.named_parameters()}

    expected, gradients = run(small_backbone(torch.float64), "cpu")
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 4e-2)):
        logits, found = run(small_backbone(dtype).cuda(), "cuda")
        report.judge(f"logits {str(dtype)[6:]}, GPU against float64 on the CPU", distance(logits, expected), bound)
        worst = max(distance(found[n], gradients[n]) for n in gradients if gradients[n].norm() > 1e-6)
        report.judge(f"gradients {str(dtype)[6:]}, worst", worst, bound * 10)


@torch.no_grad()
def graphs_against_forward(report: Report, dtype: torch.dtype, bound: float, ids: Tensor, classes: Tensor) -> None:
    module, ids, classes = small_backbone(dtype).cuda().eval(), ids.cuda(), classes.cuda()
    expected, _ = module(ids, classes)
    graphed, worst, differ = GraphedBackbone(module, 64, fuse=can_fuse()), 0.0, 0
    for _ in range(2):  # a second batch replays
        logits, cache = graphed.start(classes)
        eager, eager_cache = module.start(classes)
        for i in range(64):
            worst = max(worst, distance(logits, expected[:, i]))
            uniform = torch.rand(6, device="cuda", dtype=torch.float64)
            differ += int((draw(logits, uniform) != draw(eager, uniform)).sum())
            if i < 63:
                logits, eager = graphed.step(ids[:, i], cache), module.step(ids[:, i], eager_cache)
    name = str(dtype)[6:]
    report.judge(f"graphs {name} against forward, worst position", worst, bound)
    report.judge(f"drawn tokens that differ, graphs and eager {name}", differ, 0 if dtype == torch.float32 else 40)


@contextlib.contextmanager
def watched_steps(before: Callable[[int], None], after: Callable[[float], None] = lambda _: None) -> Iterator[None]:
    """Within this context, be told of each training step: its number before, its loss after."""
    original = Trainer.step

    def spy(trainer: Trainer, samples: Any) -> dict[str, Any]:
        before(trainer.done)
        values = original(trainer, samples)
        after(values["loss"])
        return values

    Trainer.step = spy
    try:
        yield
    finally:
        Trainer.step = original


def losses(device: str = "cuda", **train: Any) -> np.ndarray:
    """Losses of six steps of a small model without dropout."""
    steps = {"steps": 6, "global_batch": 8, "lr": 1e-3, **train}
    sizes = {"num_layers": 2, "hidden_size": 192, "num_heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
    seen: list[float] = []
    with watched_steps(lambda _: None, lambda loss: seen.append(float(loss))):
        loop.train(build(recipe(train=steps, device=device, **sizes)), random_tokens(64))
    return np.array(seen)


def losses_of_settings(report: Report) -> None:
    base = losses(precision="fp32", zero_stage=0)
    # In a process of its own, since DeepSpeed computes on one kind of device only.
    command = [sys.executable, __file__, str(report.folder), "--losses-on-cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    on_cpu = np.array(json.loads(printed.splitlines()[-1]))
    report.judge("losses of six steps, GPU against CPU, fp32", float(abs(on_cpu - base).max()), 1e-4)
    for name, bound, settings in (
        ("ZeRO 1 against 0, fp32", 1e-4, {"precision": "fp32", "zero_stage": 1}),
        ("ZeRO 2 against 0, fp32", 1e-4, {"precision": "fp32", "zero_stage": 2}),
        ("ZeRO 3 against 0, fp32", 1e-4, {"precision": "fp32", "zero_stage": 3}),
        ("bf16 against fp32", 5e-2, {"precision": "bf16"}),
        ("compiled against eager, fp32", 1e-3, {"precision": "fp32", "zero_stage": 0, "compile": True}),
        (
            "checkpointed against not, fp32",
            1e-4,
            {"precision": "fp32", "zero_stage": 0, "activation_checkpointing": True},
        ),
    ):
        try:
            report.judge(f"losses of six steps, {name}", float(abs(losses(**settings) - base).max()), bound)
        except Exception as error:  # one setting that fails need not hide the others
            report.note(f"losses of six steps, {name}/ERROR", f"{type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
    report.note("losses", [round(x, 4) for x in base.tolist()])


def resume(report: Report) -> None:
    """A run that was stopped and continued against one that was not."""

    def run(folder: Path, stop: int | None = None) -> dict[str, Tensor] | None:
        steps = {"steps": 6, "global_batch": 8, "precision": "bf16", "ema_decay": 0.9, "checkpoint_every": 3}
        model = build(recipe(train=steps | {"lr": 1e-3}, num_layers=2, hidden_size=192, num_heads=4))

        def before(step: int) -> None:
            if step == stop:
                raise KeyboardInterrupt

        try:
            with watched_steps(before):
                loop.train(model, random_tokens(64), None, folder)
        except KeyboardInterrupt:
            return None
        return {n: p.detach().float().cpu() for n, p in model.backbone.named_parameters()}

    whole = run(report.folder / "whole")
    run(report.folder / "stopped", stop=4)
    again = run(report.folder / "stopped")
    worst = max(distance(again[n], whole[n]) for n in whole)
    report.judge("weights of a resumed run against a whole one, worst", worst, 2e-2)
    for name in ("whole", "stopped"):
        shutil.rmtree(report.folder / name, ignore_errors=True)


def train(report: Report) -> None:
    """Seconds of a training step at published sizes."""
    for name, size, settings in (
        ("train S 128, as the recipe says", "s", {"compile": True}),
        ("train L 128, as the recipe says", "l", {"compile": True}),
        ("train S 128, eager", "s", {}),
        ("train S 128, autocast", "s", {"compile": True, "precision": "bf16-autocast"}),
    ):
        torch._dynamo.reset()  # what was compiled for other shapes changes how it compiles for these
        try:
            train_speed(report, name, size, settings)
        except Exception as error:
            report.note(f"{name}/ERROR", f"{type(error).__name__}: {str(error)[:300]}")
            traceback.print_exc()
        torch.cuda.empty_cache()


def train_speed(report: Report, name: str, size: str, settings: dict[str, Any], micro: int = 128) -> None:
    # Waited for only before and after the steps that are timed, as in a real run.
    first, last = (1, 2) if report.dry else (6, 14)
    steps = {"steps": last + 1, "global_batch": micro, "micro_batch": micro, **settings}
    times: dict[int, float] = {}

    def before(step: int) -> None:
        if step in (0, 1, first, last):
            torch.cuda.synchronize()
            times[step] = time.perf_counter()

    torch.cuda.reset_peak_memory_stats()
    with watched_steps(before):
        loop.train(build(recipe(size, train=steps)), random_tokens(2 * micro))
    seconds = (times[last] - times[first]) / (last - first)
    report.note(
        name,
        {
            "s/step": round(float(seconds), 4),
            "images/s": round(micro / seconds),
            "MFU": round(float(TRAIN_FLOPS[size] * micro / seconds / PEAK_FLOPS), 3),
            "GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1),
            "first step s": round(times[1] - times[0], 1),
        },
    )


def plain(report: Report) -> None:
    """What one writes first: the same network of plain layers, autocast, torch's AdamW, no DeepSpeed."""
    kept = dit_ar_blocks.is_lean, lean.is_lean, dit_ar_blocks.dropout, dit_ar_blocks.MLP.forward

    def mlp(self: Any, x: Tensor, shift: Tensor, scale: Tensor, norm: nn.LayerNorm) -> Tensor:
        hidden = F.gelu(dit_ar_blocks.behind_norm(self.fc1, norm, x, shift, scale))
        out = self.fc2(F.dropout(hidden, self.dropout, self.training))
        return F.dropout(out, self.dropout, self.training)

    dit_ar_blocks.is_lean = lean.is_lean = lambda: False
    dit_ar_blocks.dropout = lambda x, rate, on: F.dropout(x, rate, on)
    dit_ar_blocks.MLP.forward = mlp
    try:
        for compiled in (False, True):
            torch._dynamo.reset()
            plain_step(report, compiled)
            torch.cuda.empty_cache()
    finally:
        dit_ar_blocks.is_lean, lean.is_lean, dit_ar_blocks.dropout, dit_ar_blocks.MLP.forward = kept


def plain_step(report: Report, compiled: bool) -> None:
    model, batch = build(recipe()), 128
    net, objective = model.backbone.cuda().train(), model.objective.cuda()
    for block in net.blocks if compiled else ():
        block.forward = torch.compile(block.forward)
    optimizer = torch.optim.AdamW([*net.parameters(), *objective.parameters()], lr=1e-4, fused=True)
    ids = torch.randint(1024, (batch, 256), device="cuda")
    classes = torch.randint(1000, (batch,), device="cuda")
    replaced = torch.zeros(batch, 256, dtype=torch.bool, device="cuda")

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits, hidden = net(ids, classes, objective.layers)
            loss = objective(logits, hidden, ids, replaced, 2).total
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = report.timed(step, 3, 6)
    mfu = TRAIN_FLOPS["s"] * batch / seconds / PEAK_FLOPS
    name = "compiled" if compiled else "eager"
    report.note(f"plain S 128, autocast, {name}", {"s/step": round(seconds, 4), "MFU": round(mfu, 3)})


def profile(report: Report) -> None:
    """Kernels of one forward and backward pass, by time, into kernels_eager.txt and kernels_compiled.txt."""
    if report.dry:
        return
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    ids = torch.randint(1024, (128, 256), device="cuda")
    batch = Batch(ids, ids, ids < 0, ids[:, 0] % 1000, 0.0)
    for name in ("eager", "compiled"):
        model = build(recipe(train={"compile": name == "compiled"}))
        module = TrainModule(model).cuda().bfloat16().train()
        with prepared_blocks(model):
            for _ in range(2):
                module(batch)[0].backward()
            with recorded(activities=[ProfilerActivity.CUDA]) as found:
                module(batch)[0].backward()
                torch.cuda.synchronize()
        table = found.key_averages().table(sort_by="cuda_time_total", row_limit=60, max_name_column_width=90)
        (report.folder / f"kernels_{name}.txt").write_text(table)


def sample(report: Report) -> None:
    """Images a second by CUDA graphs, and what a tokenizer's decoding costs one by one and together."""
    for size, precision, batch in (
        ("s", "bf16", 64),
        ("s", "bf16", 256),
        ("s", "bf16", 1),
        ("l", "bf16", 64),
        ("s", "fp32", 64),
    ):
        if report.seconds() > report.budget * 0.9:
            break
        sampler = Sampler(build(recipe(size, sample={"batch": batch, "precision": precision})))
        scales, classes = [sampler.table.guidance_scale] * batch, balanced_classes(batch, 1000)

        def generate(
            sampler: Sampler = sampler, batch: int = batch, scales: Any = scales, classes: Any = classes
        ) -> Any:
            began = time.perf_counter()
            tokens = sampler.tokens(sampler.rows(classes, range(batch), scales), lambda tokens_B: None)
            torch.cuda.synchronize()
            return tokens, time.perf_counter() - began

        with torch.no_grad():
            _, first = generate()
            tokens, seconds = generate()
            few = tokens[:32]
            sampler.pixels(few)
            began = time.perf_counter()
            sampler.pixels(few)
            pixels = (time.perf_counter() - began) / len(few)
            whole = images_per_second(sampler, batch, 2 if report.dry else 4)
        report.note(
            f"sample {size.upper()} {precision} {batch}",
            {
                "record s": round(first - seconds, 1),
                "tokens images/s": round(batch / seconds, 1),
                "ms/step": round(seconds / 256 * 1e3, 2),
                "pixels ms": round(pixels * 1e3, 2),
                "with pixels images/s": round(whole, 1),
                "GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1),
            },
        )
        del sampler
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def images_per_second(sampler: Sampler, batch: int, batches: int) -> float:
    """Images a second of whole samples, while pixels are decoded beside the next batch's tokens."""
    began = time.perf_counter()
    made = sum(len(part.images) for part in sampler.stream(balanced_classes(batch * batches, 1000)))
    return made / (time.perf_counter() - began)


def plain_sampler(report: Report) -> None:
    """What one writes first: bf16, keys and values concatenated, modulations in the loop, no graph, pixels together."""
    model = build(recipe())
    net, tokenizer = model.backbone.cuda().bfloat16().eval(), model.tokenizer.cuda()
    for batch in (64, 256):
        with torch.no_grad(), sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            plain_tokens(net, batch)
            torch.cuda.synchronize()
            began = time.perf_counter()
            tokens = plain_tokens(net, batch)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
        with torch.no_grad():
            pixels = report.timed(lambda t=tokens: tokenizer.decode(t[:32]), 1, 3) / min(batch, 32)
        rates = {"tokens images/s": batch / seconds, "with pixels images/s": 1 / (seconds / batch + pixels)}
        report.note(f"plain sampler S bf16 {batch}", {name: round(rate, 1) for name, rate in rates.items()})
        if report.dry:
            break


def plain_tokens(net: Any, batch: int) -> Tensor:
    classes = torch.cat([torch.arange(batch), torch.full((batch,), 1000)]).cuda()
    table = (net.pos_embed + net.target_table())[0]
    embedding = net.embeddings(net.class_ids(classes))
    cache: list[list[Any]] = [[None, None] for _ in net.blocks]
    drawn: list[Tensor] = []
    x = net.cls_token[0].expand(2 * batch, -1)
    for position in range(257):
        x = x + table[position]
        condition = F.silu(embedding + net.timesteps_embeddings[0, position])
        for index, block in enumerate(net.blocks):
            shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation[1](condition).chunk(6, -1)
            qkv = block.attn.qkv(block.norm1(x) * (1 + scale1) + shift1)
            q, k, v = qkv.view(2 * batch, 3, net.num_heads, 1, -1).unbind(1)
            q, k = block.attn.q_norm(q), block.attn.k_norm(k)
            if position:
                k, v = torch.cat([cache[index][0], k], 2), torch.cat([cache[index][1], v], 2)
            cache[index] = [k, v]
            x = x + gate1 * block.attn.proj(F.scaled_dot_product_attention(q, k, v).reshape(2 * batch, -1))
            x = x + gate2 * block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x) * (1 + scale2) + shift2)))
        if position == 0:
            x = net.embeddings(net.class_ids(classes))
            continue
        final = net.adaln_before_head
        scale, shift = final.adaLN_modulation[1](condition).chunk(2, -1)
        logits = net.lm_head(final.norm_final(x) * (1 + scale) + shift).float()
        conditional, unconditional = logits.chunk(2)
        guided = unconditional + (conditional - unconditional) * 4.0
        tokens = torch.multinomial(guided.softmax(-1), 1)[:, 0]
        drawn.append(tokens)
        x = net.embeddings(torch.cat([tokens, tokens]))
    return torch.stack(drawn, 1)


def ratios(results: dict[str, Any]) -> dict[str, float]:
    """The comparisons that this script is for, where both sides were measured."""
    pairs = {
        "training step, plain eager / ours eager": ("plain S 128, autocast, eager", "train S 128, eager"),
        "training step, plain compiled / ours compiled": (
            "plain S 128, autocast, compiled",
            "train S 128, as the recipe says",
        ),
    }
    found = {
        name: results[a]["s/step"] / results[b]["s/step"]
        for name, (a, b) in pairs.items()
        if a in results and b in results
    }
    for batch in (64, 256):
        ours, other = results.get(f"sample S bf16 {batch}"), results.get(f"plain sampler S bf16 {batch}")
        if ours and other:
            rate = ours["tokens images/s"] / other["tokens images/s"]
            found[f"tokens, ours / plain sampler, batch {batch}"] = rate
    return {name: round(value, 2) for name, value in found.items() if math.isfinite(value)}


# The most telling first, since a budget may be short. A section starts only while less than this share of it is gone.
SECTIONS = {
    right: 0.30,
    train: 0.55,
    sample: 0.75,
    plain: 0.80,
    plain_sampler: 0.85,
    resume: 0.90,
    ceilings: 0.95,
    profile: 0.90,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=450.0, help="seconds")
    parser.add_argument("--only", help="sections, by commas: " + ",".join(section.__name__ for section in SECTIONS))
    parser.add_argument("--dry", action="store_true", help="short loops, no number judged")
    parser.add_argument("--losses-on-cpu", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.losses_on_cpu:
        print(json.dumps(losses("cpu", precision="fp32", zero_stage=0).tolist()))
        return 0
    report = Report(options.out, options.budget, options.only and options.only.split(","), options.dry)
    for section, latest in SECTIONS.items():
        report.run(section, latest)
    report.note("total seconds", round(report.seconds(), 1))
    print(json.dumps({**ratios(report.results), "failed": report.failed()}))
    return 1 if report.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
