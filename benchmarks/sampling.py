"""Compare the sampler's speed with a straightforward cached implementation of the same network, and with the floor.

The straightforward one, `Plain` below, is what one writes first: keys and values concatenated at each position,
modulations computed inside the loop for each row, `F.linear` on the rows as they come, no mask for one query. The
sampler's ideas can be switched on in it one by one, to measure each alone. Everything is float32 with guidance (two
rows per image), of the published S size by default, with random weights. Only sampling of tokens is timed, not the
tokenizer's decoder.

A step is timed at several depths of the cache, with the contenders taking turns. The minimum of several repetitions is
used, since other processes can only add time. A run's time is the trapezoidal sum over the depths plus the work before
the loop. ``--full`` adds one complete run of each contender at each batch size.

Predictions, made before measuring (batch 1, 4, 32; the machine reads 30 GB/s and multiplies at 150 GFLOP/s):

- A step reads 142M parameters of blocks and 71M of modulations, 0.85 GB. At the 4 to 9 GB/s that MKL reaches with two
  rows this takes 100 to 200 ms, so 25 to 50 s per image.
- Static cache: 1%, 3%, 20% (it saves copying 0.03, 0.13, 1 GB per step on average).
- Modulations ahead: a third of the weights, 1.5×, 1.5×, 1.4×.
- Packed linear layers: 4× at 2 rows, 3× at 8, 1.5× at 64, if oneDNN gets near the floors.
- A mask for one query: 1%. The q-k-v product is one matrix already; three would cost a few percent at batch 1.
- Together: 6×, 4×, 3×.
- Skipping the unconditional rows in steps whose scale is 1: nothing. Their keys and values are needed later, so the
  work is only postponed; it would be one step in 256, and at batch 1 the second row is free anyway.

Measured on two cores of an AMD EPYC with AVX-512, four runs, batch 1, 4, 32: 3.7 to 4.6×, 2.8 to 3.3×, 2.5 to 3.4×.
(Times on this machine vary by a fifth; those of the straightforward decoder at batch 32 by more, 116 to 168 s.) With
one class per batch, as when sampling a whole set: 3.2 to 3.5× and 2.6 to 3.9× at batch 4 and 32. Time over the floor:
1.5 to 1.7, 1.6 to 1.7, 1.4. At batch 32 the floor, 34 s, is itself 3.4 to 5 times as fast as the straightforward
decoder. For larger batches the cost grows less than linearly: 1.69, 1.45, 1.25, 1.13 s per image at batches of 8, 16,
32, 64 of one class (before queries and keys shared a norm).

Without AVX-512, before attention read values as bags: 3.3 to 3.6×, 2.9 to 3.0×, 2.7 to 2.9×; one class 2.5 to 3.7×;
complete runs 3.3×, 2.8 to 3.2×, 2.3 to 2.8×; time over the floor 1.8, 2.1 to 2.5, 1.3 to 1.8. Compared with the
predictions:

- MKL reads the weights at 4 to 6 GB/s at two rows, as predicted; oneDNN at 12 to 17, and with a 1×1 convolution at 19
  to 23, the memory's speed, which saves a sixth of a run at batch 1. The rest of the way to 4× is the overhead of
  oneDNN and torch per call, 50 to 80 µs for each of 81 layers: 6 of a step's 40 ms, plus 5 ms of small operations.
- Each alone, at batch 1, 4, 32: static cache 0.99, 1.05, 1.4×; modulations ahead 1.5, 1.5, 1.0×; packed layers 2.7,
  1.8, 1.3×; a mask for the query 0.99, 0.96, 0.9×. The static cache helps only if keys and values are large.
- Rounded weights: float16 alone 3.8, 2.3, 1.0×, guided logits differ by 0.02; int8 5.3, 3.8, 1.6×, differ by 2.0. int8
  is not used: FBGEMM also rounds activations, with one scale per batch, so an image would depend on its batch. bfloat16
  is no faster than float16 on this processor, which has no instructions for it.
- torch.compile of the MLP: 0.98, 0.97, 0.74×. It leaves the matrix products as they are, and they take the time.
- The q-k-v product as three: no difference at batch 1 and 4.
- At 64 rows, attention reads keys and values at 12 GB/s, half the memory's speed, in all forms that torch has; it takes
  a quarter of the time there.

With AVX-512:

- Attention took 40% of a step at 64 rows, 28% at 8. Values read as weighted bags of embeddings reach 27 to 37 GB/s, as
  a product 12 to 21; keys times a column 21 to 37, a row times keys 16 to 26. A step at depth 128 takes 152 ms, not
  179, at 64 rows, and 32 ms, not 35, at 8. Keys as bags in pieces of 16 positions would gain another 2%, but need their
  own layout: not used.
- Each alone: packed layers 3.2, 2.1, 1.2×; modulations ahead 1.5, 1.3, 1.2×; static cache 1.0, 1.0, 1.8×; a mask for
  the query 0.99, 0.99, 1.03×; the two passes of guidance apart 0.86, 0.54, 0.93×.
- Normalising queries and keys in one call, with the norms' weights and biases on the query alone, gains 7, 5, 1%.
- oneDNN reaches 204 of 226 GFLOP/s at 64 rows, and 32 to 35 GB/s at 2 and 8. A convolution costs 15 µs more per call
  than a linear layer, so it is used only for matrices of a million entries or more: 0.3 ms of a step. From 32 rows on,
  linear layers alone would gain 3%, but their results differ in the last bits, so an image would depend on its batch.

    python benchmarks/sampling.py --full

The last line is a JSON object: ``speedup`` over the straightforward decoder (targets 4, 3, 3 at batch 1, 4, 32),
``floor`` (time over the floor; target at most 2), the largest ``difference`` of guided logits along one path (target at
most 1e-4), the sampler's ``seconds``, the speedup of ``whole`` runs, and ``fp16 weights``, the sampler's speedup with
``precision = "fp16-weights"``. ``--ideas`` adds the speedup of each of the ``ideas`` alone, and the difference that
``rounded`` weights make; these have no targets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rearkit.components.backbones.dit_ar import DiTAR
from rearkit.components.backbones.dit_ar_blocks import NORM_EPS, DiTARSettings
from rearkit.components.backbones.dit_ar_decoding import Decoder
from rearkit.contracts import TokenSpace
from rearkit.layers.packed_linear import PackedLinear, half_weights
from rearkit.recipe.tables import SampleTable
from rearkit.sampling.sampler import sample_tokens

IDEAS = (
    "static cache",
    "modulations ahead",
    "packed layers",
    "half layers",
    "int8 layers",
    "compiled",
    "bmm attention",
    "masked query",
    "split qkv",
    "passes apart",
)


@torch.compile(dynamic=False)
def compiled_mlp(x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, *parts: Tensor) -> Tensor:
    """A block's MLP, compiled: the larger half of its weights and most of its small operations."""
    norm, norm_bias, fc1, bias1, fc2, bias2 = parts
    normed = F.layer_norm(x, x.shape[1:], norm, norm_bias, NORM_EPS)
    return x + gate * F.linear(F.gelu(F.linear(normed * (1 + scale) + shift, fc1, bias1)), fc2, bias2)


def int8_linear(linear: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    """A linear layer in 8 bits: one scale per row of weights; FBGEMM also rounds activations, one scale per batch."""
    weight = linear.weight.detach()
    scales = weight.abs().amax(1).clamp(min=1e-9).double() / 127
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, linear.bias)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)


class Plain:
    """A straightforward cached decoder in which single ``ideas`` of the sampler, and rejected ones, can be enabled."""

    def __init__(self, backbone: DiTAR, classes: Tensor, ideas: frozenset[str] = frozenset()) -> None:
        self.net, self.classes, self.ideas, self.place = backbone, classes, ideas, 0
        self.embedding = backbone.embeddings(backbone.class_ids(classes))
        self.table = (backbone.pos_embed + backbone.target_table())[0]
        self.linear: Callable[[torch.nn.Linear, Tensor], Tensor] = lambda layer, x: layer(x)
        if ideas & {"packed layers", "half layers", "int8 layers"}:
            pack = int8_linear if "int8 layers" in ideas else lambda m: PackedLinear(m, len(classes))
            with half_weights("half layers" in ideas):
                self.packed = {id(m): pack(m) for m in backbone.modules() if isinstance(m, torch.nn.Linear)}
            self.linear = lambda layer, x: self.packed[id(layer)](x)
        if "modulations ahead" in ideas:
            distinct, self.row = classes.unique(return_inverse=True)
            embedding = backbone.embeddings(backbone.class_ids(distinct))
            self.ahead_embedding, self.ahead_places = embedding, max(1, 512 // len(distinct))
        shape = (len(backbone.blocks), len(classes), backbone.num_heads, len(self.table), backbone.head_dim)
        static = "static cache" in ideas
        self.so_far: Tensor | None = None
        empty = [torch.empty(*shape[1:3], 0, shape[4])] * shape[0]
        self.keys, self.values = (torch.ones(shape), torch.ones(shape)) if static else (list(empty), list(empty))

    def at(self, places: int) -> Plain:
        """Pretend that so many positions are decoded, with arbitrary keys and values."""
        if "static cache" not in self.ideas:
            if self.so_far is None or self.so_far.shape[2] != places:
                rows, heads, _, width = self.keys[0].shape
                self.so_far = torch.ones(len(self.keys) * rows, heads, places, width)
            self.keys, self.values = (list(self.so_far.chunk(len(self.keys))) for _ in range(2))
        self.place = places
        return self

    def modulate(self, layer: torch.nn.Sequential, index: int) -> Tensor:
        if "modulations ahead" not in self.ideas:
            return self.linear(layer[1], F.silu(self.embedding + self.net.timesteps_embeddings[0, self.place]))
        if index == 0 and self.place % self.ahead_places == 0:
            self.look_ahead(self.place)
        return self.ahead[index][self.place % self.ahead_places][self.row]

    def look_ahead(self, place: int) -> None:
        places = self.net.timesteps_embeddings[0, place : place + self.ahead_places]
        condition = F.silu(places[:, None] + self.ahead_embedding).flatten(0, 1)
        modules = [b.adaLN_modulation[1] for b in self.net.blocks] + [self.net.adaln_before_head.adaLN_modulation[1]]
        self.ahead = [self.linear(m, condition).view(len(places), len(self.ahead_embedding), -1) for m in modules]

    def attend(self, block, x: Tensor, layer: int) -> Tensor:
        rows, width, heads = *x.shape, self.net.num_heads
        if "split qkv" in self.ideas:
            weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
            parts = [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
        else:
            parts = self.linear(block.attn.qkv, x).chunk(3, dim=-1)
        q, k, v = (part.view(rows, heads, 1, -1) for part in parts)
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
        end = self.place + 1
        if "static cache" in self.ideas:
            self.keys[layer, :, :, self.place], self.values[layer, :, :, self.place] = k[:, :, 0], v[:, :, 0]
            k, v = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        else:
            k, v = torch.cat([self.keys[layer], k], dim=2), torch.cat([self.values[layer], v], dim=2)
            self.keys[layer], self.values[layer] = k, v
        if "bmm attention" in self.ideas:
            out = ((q * k.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v
        else:
            mask = torch.ones(1, 1, 1, end, dtype=torch.bool) if "masked query" in self.ideas else None
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.linear(block.attn.proj, out.reshape(rows, width))

    def advance(self, x: Tensor) -> Tensor:
        x = x + self.table[self.place]
        for i, block in enumerate(self.net.blocks):
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(block.adaLN_modulation, i).chunk(6, dim=-1)
            x = x + gate1 * self.attend(block, block.norm1(x) * (1 + scale1) + shift1, i)
            x = self.mlp(block, x, shift2, scale2, gate2)
        final = self.net.adaln_before_head
        scale, shift = self.modulate(final.adaLN_modulation, len(self.net.blocks)).chunk(2, dim=-1)
        self.place += 1
        return self.linear(self.net.lm_head, final.norm_final(x) * (1 + scale) + shift)

    def mlp(self, block, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        if "compiled" in self.ideas:
            parts = (block.norm2, block.mlp.fc1, block.mlp.fc2)
            return compiled_mlp(x, shift, scale, gate, *(t for part in parts for t in (part.weight, part.bias)))
        hidden = F.gelu(self.linear(block.mlp.fc1, block.norm2(x) * (1 + scale) + shift))
        return x + gate * self.linear(block.mlp.fc2, hidden)

    def start(self) -> Tensor:
        self.advance(self.net.cls_token[0].expand(len(self.classes), -1))
        return self.advance(self.embedding)

    def step(self, tokens: Tensor) -> Tensor:
        return self.advance(self.net.embeddings(tokens))


class Apart:
    """Two `Plain` decoders, for conditional and unconditional rows, instead of one for both."""

    def __init__(self, backbone: DiTAR, classes: Tensor, ideas: frozenset[str] = frozenset()) -> None:
        self.halves = [Plain(backbone, half, ideas) for half in classes.chunk(2)]

    def at(self, places: int) -> Apart:
        for half in self.halves:
            half.at(places)
        return self

    def step(self, tokens: Tensor) -> Tensor:
        return torch.cat([half.step(own) for half, own in zip(self.halves, tokens.chunk(2), strict=True)])


def build(arguments: argparse.Namespace) -> DiTAR:
    settings = DiTARSettings(hidden_size=arguments.hidden, num_layers=arguments.layers)
    torch.manual_seed(0)
    backbone = DiTAR(settings, TokenSpace(256, 1024, 1000)).eval().requires_grad_(False)
    for parameter in backbone.parameters():  # fresh blocks are shut; these are not, and logits are of order 1
        if not parameter.any():
            torch.nn.init.trunc_normal_(parameter, std=0.02)
    return backbone


def rows_of(batch: int, same_class: bool = False) -> Tensor:
    """Return the class rows of a guided batch: all of one class, or distinct classes, which is the worst case."""
    classes = torch.zeros(batch, dtype=torch.int64) if same_class else torch.arange(batch) * 7
    return torch.cat([classes, torch.full((batch,), 1000)])


clock = time.perf_counter


def seconds(work: Callable[[], object]) -> float:
    started = clock()
    work()
    return clock() - started


def machine() -> tuple[float, float]:
    """Return bytes and operations per second: the best of several reads of 512 MiB and of several large products."""
    big, square = torch.ones(2**27), torch.randn(2048, 2048)
    packed = PackedLinear(torch.nn.Linear(2048, 2048), 2048)
    read = min(seconds(big.sum) for _ in range(12))
    multiply = min(min(seconds(lambda: square @ square), seconds(lambda: packed(square))) for _ in range(12))
    return big.numel() * 4 / read, 2 * 2048**3 / multiply


def floor(backbone: DiTAR, batch: int, read: float, multiply: float) -> float:
    """Return the least possible seconds for a batch: all steps, plus modulations once per class and position.

    A step takes at least as long as its arithmetic or the reading of its weights, whichever is longer, plus the reading
    of the keys and values so far.
    """
    D, N, L, V = backbone.hidden_size, backbone.space.num_tokens, backbone.num_layers, backbone.space.codebook_size
    rows, places, weights = 2 * batch, N + 1, L * 12 * D * D + V * D
    kv_bytes = 2 * L * rows * D * 4 * (places / 2)
    step = max(2 * rows * weights / multiply, weights * 4 / read) + kv_bytes / read
    modulation_weights = L * 6 * D * D + 2 * D * D
    modulations = max(2 * modulation_weights * (batch + 1) * places / multiply, modulation_weights * 4 / read)
    return places * step + modulations


class Ours:
    """The backbone's own decoding, with the methods of `Plain`."""

    def __init__(self, backbone: DiTAR, classes: Tensor, half: bool = False) -> None:
        self.net = backbone
        with half_weights(half):
            _, self.cache = backbone.start(classes)
        self.cache.keys.fill_(1), self.cache.values.fill_(1)
        self.ahead_places = self.cache.modulations.ahead
        self.look_ahead = self.cache.modulations._compute

    def at(self, places: int) -> Ours:
        self.cache.length = places
        return self

    def step(self, tokens: Tensor) -> Tensor:
        return self.net.step(tokens, self.cache)


@torch.inference_mode()
def measure(backbone: DiTAR, rows: Tensor, kinds: dict[str, frozenset[str] | None], spend: float) -> dict[str, float]:
    """Return the seconds of a whole run for each of several decoders, computed from steps at three depths."""
    places, tokens = backbone.space.num_tokens + 1, torch.arange(len(rows)) % 1024
    depths = (16, places // 2, places - 1)
    steps: dict[str, list[float]] = {}
    decoders = {
        n: Ours(backbone, rows, n == "fp16 weights")
        if i is None
        else (Apart if "passes apart" in i else Plain)(backbone, rows, i)
        for n, i in kinds.items()
    }
    ahead = {name: decoder for name, decoder in decoders.items() if hasattr(decoder, "ahead_places")}
    # Outside of the steps: modulations of all places, and packing.
    outside = {}
    for name, decoder in ahead.items():
        pieces = places / min(decoder.ahead_places, places)
        outside[name] = pieces * min(seconds(lambda decoder=decoder: decoder.look_ahead(0)) for _ in range(3))
    for name in [name for name, ideas in kinds.items() if ideas is None]:
        with half_weights(name == "fp16 weights"):
            outside[name] += min(seconds(lambda: Decoder(backbone, rows)) for _ in range(3))
    for depth in depths:
        for decoder in ahead.values():
            decoder.look_ahead(depth // decoder.ahead_places * decoder.ahead_places)
        found: dict[str, list[float]] = {name: [] for name in kinds}
        begun, rounds = time.perf_counter(), 0
        while rounds < 3 or time.perf_counter() - begun < spend:
            rounds += 1
            for name, decoder in decoders.items():
                decoder.at(depth)
                if hasattr(decoder, "ahead_places") and depth % decoder.ahead_places == 0 and kinds[name] is not None:
                    decoder.place += 1  # not where it would compute modulations, which are counted above
                found[name].append(seconds(lambda decoder=decoder: decoder.step(tokens)))
        for name in kinds:
            steps.setdefault(name, []).append(min(found[name][1:]))
    middle = {name: (near + 2 * middle + far) / 4 for name, (near, middle, far) in steps.items()}
    return {name: outside.get(name, 0.0) + places * middle[name] for name in kinds}


@torch.inference_mode()
def difference(backbone: DiTAR, batch: int, steps: int, idea: str | None = None, scale: float = 22.0) -> float:
    """Return the largest difference of guided logits from the straightforward decoder's, along one path of tokens.

    Without an idea, the difference of the sampler; with one, of the straightforward decoder with that idea.
    """
    rows = rows_of(batch)
    plain, largest = Plain(backbone, rows), 0.0
    other = Plain(backbone, rows, frozenset([idea])) if idea else None
    path = torch.randint(1024, (steps, batch), generator=torch.Generator().manual_seed(1))
    expected, cache = plain.start(), None
    if other is None:
        found, cache = backbone.start(rows)
    else:
        found = other.start()
    for tokens in path:
        conditional, unconditional = (found - expected).chunk(2)
        largest = max(largest, float((unconditional + (conditional - unconditional) * scale).abs().max()))
        tokens = tokens.repeat(2)
        expected, found = plain.step(tokens), other.step(tokens) if other else backbone.step(tokens, cache)
    return largest


class Straightforward:
    """`Plain` with the interface of a backbone, for whole runs."""

    def __init__(self, backbone: DiTAR) -> None:
        self.net, self.space = backbone, backbone.space

    def start(self, classes: Tensor) -> tuple[Tensor, Plain]:
        plain = Plain(self.net, classes)
        return plain.start(), plain

    def step(self, tokens: Tensor, cache: Plain) -> Tensor:
        return cache.step(tokens)


@torch.inference_mode()
def whole_run(backbone: DiTAR | Straightforward, batch: int) -> float:
    """Return the seconds of one complete run of the sampler, drawing of tokens included."""
    table = SampleTable(num_images=batch, guidance_scale=22.0, guidance_power=2.75)
    uniforms = torch.rand(
        batch, backbone.space.num_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    return seconds(lambda: sample_tokens(backbone, rows_of(batch)[:batch], uniforms, 1000, table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--seconds", type=float, default=12.0, help="to spend on the steps at each depth")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--ideas", action="store_true", help="measure each idea by itself, too")
    parser.add_argument("--full", action="store_true", help="also run the sampler in earnest, once a batch size")
    parser.add_argument("--own-time", action="store_true", help="on one thread, count this process's own time alone")
    arguments = parser.parse_args()
    if arguments.own_time:  # on a machine that others use, too
        global clock
        clock = time.process_time
        torch.set_num_threads(1)
    backbone = build(arguments)
    read, multiply = machine()
    print(f"machine: reads {read / 1e9:.1f} GB/s, multiplies {multiply / 1e9:.0f} GFLOP/s")
    result: dict[str, dict[str, Any]] = {"speedup": {}, "floor": {}, "difference": {}}
    result |= {"seconds": {}, "whole": {}, "fp16 weights": {}, "ideas": {}, "rounded": {}}
    for batch in arguments.batches:
        kinds: dict[str, frozenset[str] | None] = {
            "straightforward": frozenset(),
            "sampler": None,
            "fp16 weights": None,
        }
        total = measure(backbone, rows_of(batch), kinds, arguments.seconds)
        least = floor(backbone, batch, read, multiply)
        for name, took in total.items():
            print(f"batch {batch:3}: {name:18} {took:7.1f} s, {total['straightforward'] / took:5.2f}×")
        print(f"batch {batch:3}: {'floor':18} {least:7.1f} s")
        if batch > 1:
            one = measure(backbone, rows_of(batch, same_class=True), {"sampler": None}, arguments.seconds / 3)[
                "sampler"
            ]
            print(f"batch {batch:3}: {'of one class':18} {one:7.1f} s, {total['straightforward'] / one:5.2f}×")
        if arguments.full:
            plain, ours = whole_run(Straightforward(backbone), batch), whole_run(backbone, batch)
            print(
                f"batch {batch:3}: whole runs: straightforward {plain:.1f} s, sampler {ours:.1f} s, {plain / ours:.2f}×"
            )
            result["whole"][str(batch)] = round(plain / ours, 2)
        key = str(batch)
        result["seconds"][key] = round(total["sampler"], 2)
        result["speedup"][key] = round(total["straightforward"] / total["sampler"], 2)
        result["floor"][key] = round(total["sampler"] / least, 2)
        result["difference"][key] = float(f"{difference(backbone, batch, 64 if batch == 1 else 16):.2g}")
        result["fp16 weights"][key] = round(total["straightforward"] / total["fp16 weights"], 2)
        for idea in IDEAS if arguments.ideas else ():  # one at a time, or their caches would fill the memory
            kinds = {"straightforward": frozenset(), idea: frozenset([idea])}
            total = measure(backbone, rows_of(batch), kinds, arguments.seconds / 3)
            ratio = result["ideas"].setdefault(key, {})[idea] = round(total["straightforward"] / total[idea], 2)
            print(f"batch {batch:3}: {idea + ' alone':24} {ratio:5.2f}×")
    for idea in ("half layers", "int8 layers") if arguments.ideas else ():
        result["rounded"][idea] = float(f"{difference(backbone, 4, 16, idea):.2g}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
