"""How fast the sampler decodes, beside a straightforward cached implementation of the same network, and the floor.

    python benchmarks/sampling.py --full

The last line is a JSON object: ``speedup`` over the straightforward one (bars 4, 3, 3 at batch 1, 4, 32), ``floor``
(time over the floor; bar 2), the largest ``difference`` of guided logits along one path (bar 1e-4), the sampler's
``seconds``, the speedup of ``whole`` runs, and, with ``--ideas``, the speedup by each of the ``ideas`` alone and the
difference that ``rounded`` weights make, which are not held to the bar; ``fp16 weights`` is the sampler's speedup with
``precision = "fp16-weights"``. What was predicted and found stands in ``docs/performance/sampling.md``.
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
    """The larger half of a block's weights and most of its small operations, in the hands of the compiler."""
    norm, norm_bias, fc1, bias1, fc2, bias2 = parts
    normed = F.layer_norm(x, x.shape[1:], norm, norm_bias, NORM_EPS)
    return x + gate * F.linear(F.gelu(F.linear(normed * (1 + scale) + shift, fc1, bias1)), fc2, bias2)


def int8_linear(linear: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    """Weights in 8 bits, a scale a row; FBGEMM rounds activations to 8 bits, too, with one scale for the batch."""
    weight = linear.weight.detach()
    scales = weight.abs().amax(1).clamp(min=1e-9).double() / 127
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, linear.bias)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)


class Plain:
    """A straightforward cached decoder; ``ideas`` of the fast one (and of worse ones) can be switched on."""

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
        """Pretend that so many places are decoded, with nonsense for keys and values."""
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
    """`Plain` twice, for the conditional and the unconditional rows, instead of once for both."""

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
    """Class rows of a guided batch: distinct classes, the worst case, or one."""
    classes = torch.zeros(batch, dtype=torch.int64) if same_class else torch.arange(batch) * 7
    return torch.cat([classes, torch.full((batch,), 1000)])


clock = time.perf_counter


def seconds(work: Callable[[], object]) -> float:
    started = clock()
    work()
    return clock() - started


def machine() -> tuple[float, float]:
    """Bytes and floating-point operations a second: the best of a few reads of 512 MiB, and of large products."""
    big, square = torch.ones(2**27), torch.randn(2048, 2048)
    packed = PackedLinear(torch.nn.Linear(2048, 2048), 2048)
    read = min(seconds(big.sum) for _ in range(12))
    multiply = min(min(seconds(lambda: square @ square), seconds(lambda: packed(square))) for _ in range(12))
    return big.numel() * 4 / read, 2 * 2048**3 / multiply


def floor(backbone: DiTAR, batch: int, read: float, multiply: float) -> float:
    """Least seconds of a batch: each step's products and reads, and modulations once a class and place.

    A step cannot take less than its arithmetic, nor than reading its weights and the keys and values so far.
    """
    D, N, L, V = backbone.hidden_size, backbone.space.num_tokens, backbone.num_layers, backbone.space.codebook_size
    rows, places, weights = 2 * batch, N + 1, L * 12 * D * D + V * D
    kv_bytes = 2 * L * rows * D * 4 * (places / 2)
    step = max(2 * rows * weights / multiply, weights * 4 / read) + kv_bytes / read
    modulation_weights = L * 6 * D * D + 2 * D * D
    modulations = max(2 * modulation_weights * (batch + 1) * places / multiply, modulation_weights * 4 / read)
    return places * step + modulations


class Ours:
    """The backbone's own decoding, held in the way of `Plain`."""

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
    """Seconds of a whole run, of each of several decoders."""
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
    """Largest difference of guided logits from the straightforward decoder's, along one path of tokens.

    Without an idea, that of the sampler; with one, of the straightforward decoder that has it.
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
    """`Plain` as a backbone is called, for whole runs."""

    def __init__(self, backbone: DiTAR) -> None:
        self.net, self.space = backbone, backbone.space

    def start(self, classes: Tensor) -> tuple[Tensor, Plain]:
        plain = Plain(self.net, classes)
        return plain.start(), plain

    def step(self, tokens: Tensor, cache: Plain) -> Tensor:
        return cache.step(tokens)


@torch.inference_mode()
def whole_run(backbone: DiTAR | Straightforward, batch: int) -> float:
    """Seconds of one real run of the sampler, draws included."""
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
