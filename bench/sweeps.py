"""Series of points over many sizes: the expert MLP, the flow sampler, the layers of convolutional codecs.

Their tables are in the families' cases.py. What points of a series share (weights of several layers, packed in
every format) is made once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import flow_baselines
from codec_layers import LAYERS, Built
from measure import AGREE, PROBE, SHORT, Calls, Ours, Point, against, packed, serving
from mingcore import ops
from mingcore.ops._core.cases import Cost, Draw, baselines, cost, for_op
from mingcore.ops.flow.cases import SWEEP_BATCHES, head_weights
from mingcore.ops.flow.cases import SWEEP_TOKENS as FLOW_TOKENS
from mingcore.ops.moe.cases import ROUTINGS, SIZES, SWEEP_TOKENS, routed
from mingcore.testing.compare import check_op, max_relative
from mingcore.testing.roofline import Ceilings, fastest_read
from mingcore.testing.timing import rotate

Lacking = dict[str, str]  # weight format or layer -> why it is not measured
FORMATS = {
    "moe": {"cpu": ("bf16", "fp32", "fp16", "int8", "int8_dyn"), "cuda": ("bf16", "int8", "fp8")},
    "flow": {"cpu": ("fp32", "bf16", "fp16", "int8", "int8_dyn"), "cuda": ("bf16", "int8", "fp8")},
}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int8_dyn": 1, "fp8": 1}

# --- the expert MLP -------------------------------------------------------------------------------

MOE_BASELINE = "loop over the experts hit, bf16"  # what all others are held to
# how far formats that lose more than bfloat16 may be from it
MOE_AGREE = {"int8": 0.1, "int8_dyn": 0.15, "fp8": 0.25}
LOOP_OVER_ALL = 128  # tokens; with more every expert is hit, and both loops are one


@dataclass(frozen=True)
class Rows:
    """One layer's matrices: [E, 2I, H], [E, H, I] and the shared expert's pair."""

    gate_up: Tensor
    down: Tensor
    shared: tuple[Tensor, Tensor]

    @staticmethod
    def random(dims: dict[str, int], device: str, seed: int) -> Rows:
        """bfloat16; products keep the size of their input. The numbers come around after 4194301,
        a prime, so that no two rows of a matrix are alike and a layer is there in a second."""
        draw = Draw(device, torch.bfloat16, seed).normal(4194301)

        def matrix(*shape: int) -> Tensor:
            w = torch.empty(shape, dtype=torch.bfloat16, device=device)
            for piece in w.view(-1).split(len(draw)):
                torch.mul(draw[: len(piece)], shape[-1] ** -0.5, out=piece)
            return w

        E, H, I, S = (dims[name] for name in ("E", "H", "I", "shared"))
        shared = matrix(2 * S, H), matrix(H, S)
        return Rows(matrix(E, 2 * I, H), matrix(E, H, I), shared)

    def to(self, dtype: torch.dtype) -> Rows:
        return Rows(self.gate_up.to(dtype), self.down.to(dtype), tuple(w.to(dtype) for w in self.shared))

    def arguments(self, tokens: dict[str, Tensor]) -> dict[str, Any]:
        """Of `ops.moe_mlp`, x in the experts' type."""
        x = tokens["x"].to(self.gate_up.dtype)
        return {**tokens, "x": x, "experts": (self.gate_up, self.down), "shared": self.shared}


@dataclass(frozen=True)
class Layers:
    """`count` layers, each with weights of its own: as bfloat16 rows and in each of `formats`; so
    many of them as float32 rows as memory allows (none on a GPU)."""

    size: str
    device: str
    count: int
    formats: tuple[str, ...]

    @property
    def dims(self) -> dict[str, int]:
        return SIZES[self.size]

    @cached_property
    def rows(self) -> list[Rows]:
        return [Rows.random(self.dims, self.device, seed) for seed in range(self.count)]

    @cached_property
    def packed(self) -> dict[str, list[ops.PackedExperts]]:
        def pack(rows: Rows, format: str) -> ops.PackedExperts:
            return ops.pack_experts(rows.gate_up, rows.down, shared=rows.shared, format=format)

        return {f: [pack(rows, f) for rows in self.rows] for f in self.formats}

    @cached_property
    def wide(self) -> list[Rows]:
        if self.device != "cpu":
            return []
        enough = memory() > self.count * 4 * self.elements + (2 << 30)
        return [rows.to(torch.float32) for rows in self.rows[: self.count if enough else 1]]

    @property
    def elements(self) -> int:
        """Weights of one layer."""
        return 3 * self.dims["H"] * (self.dims["E"] * self.dims["I"] + self.dims["shared"])

    def need(self) -> int:
        """Bytes, at least."""
        per_weight = 2 + sum(BYTES[f] for f in self.formats if self.device == "cpu" or f != "bf16")
        wide = 4 if self.device == "cpu" else 0
        return self.elements * (self.count * per_weight + wide)

    def tokens(self, T: int, routing: str, seed: int) -> dict[str, Tensor]:
        """Routed inputs in bfloat16: x [T, H], weights [T, K], ids [T, K]."""
        dims = {name: self.dims[name] for name in ("K", "E", "H")}
        return routed(Draw(self.device, torch.bfloat16, seed), T, **dims, routing=routing)


@lru_cache(maxsize=1)
def read_probe(nbytes: int) -> tuple[Calls, int]:
    """The read probe of the ceilings as one more call, and the bytes that it reads."""
    x = torch.randn(nbytes // 2, dtype=torch.bfloat16)
    return {PROBE: fastest_read(x)}, x.nbytes


def memory() -> int:
    """Bytes that the system says are available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))


def check_last(experts: ops.PackedExperts, tokens: dict[str, Tensor], got: Tensor) -> None:
    """Hold the last token of a result to the oracle: it sees its own experts only, so a layer of
    any size is checked in little time. Raises AssertionError."""
    last = {name: t[-1:] for name, t in tokens.items()}
    hit, ids = last["ids"].unique(return_inverse=True)
    stacks = {name: getattr(experts, name) for name in ("gate_up", "down", "gate_up_scale", "down_scale")}
    few = replace(experts, **{n: None if t is None else t[hit] for n, t in stacks.items()})
    check_op("moe_mlp", {**last, "ids": ids.int(), "experts": few}, (got[-1:],))


def moe_point(
    layers: Layers, T: int, routing: str, ceiling: Ceilings | None, *, quick: bool = False, wanted: str = "all"
) -> tuple[Point, Lacking]:
    """One number of tokens and one routing, in every format; and why formats lack."""
    tokens = [layers.tokens(T, routing, seed) for seed in range(layers.count)]
    ours, lacking = {}, {}
    for format, experts in layers.packed.items():
        wide = format == "fp32"
        sets = [{**t, "x": t["x"].float() if wide else t["x"], "experts": e} for t, e in zip(tokens, experts)]
        backend, reason = serving("moe_mlp", sets[0])
        if backend == "reference":
            lacking[format] = reason
        else:
            ours[f"ours {format}"] = Ours(rotate(ops.moe_mlp, sets), format, backend, sets)

    def check(results: dict[str, Any]) -> None:
        for name, got in results.items():
            limit = MOE_AGREE.get(name.removeprefix("ours "), AGREE[torch.bfloat16])
            error = max_relative(got, results.get(MOE_BASELINE, got))
            if not error <= limit:
                raise AssertionError(f"{routing} T={T}: {name} differs from the loop by {error:.2e}")
        for name, each in ours.items():
            check_last(layers.packed[each.dtype][0], {n: each.sets[0][n] for n in tokens[0]}, results[name])

    probe = ({}, 0)
    if layers.device == "cpu" and ceiling is not None:
        probe = read_probe((4 if quick else 8) * ceiling.cache_bytes)
    case = f"{layers.size}_{routing}_t{T}"
    theirs = _moe_baselines(layers, tokens, T, wanted)
    return Point("moe_mlp", case, layers.device, ours, theirs, check, slow=20.0, probe=probe), lacking


def _moe_baselines(layers: Layers, tokens: list[dict[str, Tensor]], T: int, wanted: str) -> Calls:
    """In bfloat16; the loops in float32 as well, where there are such rows."""
    found: dict[str, list[tuple[Callable[[], Any]]]] = {}
    for i, each in enumerate(tokens):
        rows = {"bf16": layers.rows[i]}
        if layers.wide:
            rows["fp32"] = layers.wide[i % len(layers.wide)]
        for dtype, weights in rows.items():
            for name, call in against("moe_mlp", weights.arguments(each), wanted).items():
                if name == "loop over all experts" and T > LOOP_OVER_ALL:
                    continue
                if dtype == "bf16" or name.startswith("loop"):
                    found.setdefault(f"{name}, {dtype}", []).append((call,))
    return {name: rotate(lambda call: call(), calls) for name, calls in found.items()}


def moe_points(options: argparse.Namespace, ceiling: Ceilings) -> Iterator[tuple[Point, Lacking]]:
    layers = Layers(options.size, options.device, options.layers, options.formats or FORMATS["moe"][options.device])
    if options.device == "cpu" and memory() < layers.need() + (1 << 30):
        raise SystemExit(
            f"run: {options.layers} layers of size {options.size} need {layers.need() / 2**30:.1f} GiB of memory, "
            f"{memory() / 2**30:.1f} GiB is available; name fewer with --formats or --layers"
        )
    for T in options.tokens or (SWEEP_TOKENS if options.device == "cuda" else SWEEP_TOKENS[:-1]):
        for routing in options.routing:
            yield moe_point(layers, T, routing, ceiling, quick=options.quick, wanted=options.against or "all")


def moe_order(row: dict[str, Any]) -> tuple[int, int]:
    _, routing, T = row["case"].rsplit("_", 2)
    return int(T[1:]), list(ROUTINGS).index(routing)


# --- the flow sampler -----------------------------------------------------------------------------

# of the reference on the same operands: float32 activations; 16-bit ones; rounding the other way
EXACT, NARROW, DYNAMIC = 1e-4, 4e-2, 5e-2
# of the float32 baseline, by what a format or a dtype loses
LOSES = {"fp32": 1e-3, "bf16": 0.1, "fp16": 2e-2, "int8": 0.1, "int8_dyn": 0.2, "fp8": 0.3}


class Heads:
    """One random head, packed in every format, and in rows for the baselines."""

    def __init__(self, size: str, device: str, formats: tuple[str, ...]):
        self.device, self.size = device, size
        # on a GPU everything is bfloat16, on a CPU activations are float32
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.cases = {case.name: case for case in for_op("flow_sample", tag="sweep", large=True)}
        self.dims = {"L": 2, "H": 64, "W": 128, "C": 16, "Hc": 48, "heads": 4}
        real = self.cases["real_11_b1"].dims
        if size == "real":
            self.dims = {name: real[name] for name in self.dims}
        weights = head_weights(Draw(device, self.dtype, 0), **self.dims)
        self.rows = ops.pack_flow_head(**weights, backend="reference")
        self.packed = {f: ops.pack_flow_head(**weights, format=f) for f in formats}
        self.steps, self.guidance = real["schedule"]["steps"], 2.0

    def arguments(self, B: int, tokens: int) -> dict[str, Any]:
        """Of `ops.flow_sample`, but for the head."""
        N, P = FLOW_TOKENS[tokens]
        C, d = self.dims["C"], Draw(self.device, self.dtype, 1)
        return {
            "schedule": ops.FlowSchedule.make(self.steps),
            "condition": d.normal(B, self.dims["Hc"]),
            "history": d.normal(B, N, C),
            "noise": d.normal(self.steps + 1, B, P, C, dtype=torch.float32),
            "guidance": self.guidance,
        }


def check_ends(kw: dict[str, Any], got: Tensor) -> None:
    """Against the reference on the same operands, first and last request; AssertionError."""
    ends = slice(None) if len(got) <= 2 else slice(0, None, len(got) - 1)
    few = {name: kw[name][ends] for name in ("condition", "history")}
    expected = ops.flow_sample(**{**kw, **few, "noise": kw["noise"][:, ends]}, backend="reference")
    limit = NARROW if kw["condition"].dtype != torch.float32 else EXACT
    limit = DYNAMIC if kw["head"].format == "int8_dyn" else limit
    error = max_relative(got[ends], expected)
    if not error <= limit:
        raise AssertionError(f"{kw['head'].format}: {error:.2e} from the reference, limit {limit}")


def flow_point(
    heads: Heads, B: int, tokens: int, *, wanted: tuple[str, ...], reference: bool = False
) -> tuple[Point, Lacking]:
    """One batch size and number of tokens, in every format; and why formats lack."""
    plain, device = heads.arguments(B, tokens), heads.device
    ours, lacking = {}, {}
    for format, head in heads.packed.items():
        kw = {**plain, "head": head}
        backend, reason = serving("flow_sample", kw)
        if backend == "reference" and not reference:
            lacking[format] = reason
        else:
            ours[f"ours {format}"] = Ours(lambda kw=kw: ops.flow_sample(**kw), format, backend, [kw])
    dtypes = (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)
    theirs: Calls = {}
    if ours and wanted:
        theirs = dict(flow_baselines.baselines({**plain, "head": heads.rows}, dtypes, wanted))

    def check(results: dict[str, Any]) -> None:
        for name, each in ours.items():
            check_ends(each.sets[0], results[name])
        first = next(iter(theirs), None)
        for name, got in results.items():
            limit = LOSES[name.replace(",", "").split()[-1]]
            error = 0.0 if first is None else max_relative(got, results[first])
            if not error <= limit:
                raise AssertionError(f"{name} differs from the first baseline by {error:.2e}")

    case = f"{heads.size}_{tokens}_b{B}"
    return Point("flow_sample", case, device, ours, theirs, check, cache="cold", slow=8.0, eager_too=True), lacking


def flow_points(options: argparse.Namespace, heads: Heads) -> Iterator[tuple[Point, Lacking]]:
    wanted = {"none": (), "best": flow_baselines.NAMES[:3], "all": flow_baselines.NAMES}
    chosen = options.against or "best"
    names = wanted[chosen] if chosen in wanted else tuple(chosen.split(","))
    for tokens in options.tokens or FLOW_TOKENS:
        for B in options.batches or SWEEP_BATCHES:
            yield flow_point(heads, B, tokens, wanted=names, reference=options.reference)


def flow_order(row: dict[str, Any]) -> tuple[int, int]:
    _, tokens, B = row["case"].rsplit("_", 2)
    return int(tokens), int(B[1:])


# --- the layers of convolutional codecs ------------------------------------------------------------

CONV_PARTS = ("overlap_add", "spectrum_head", "frame_embed")
CONV_AGREE = {"cpu": 2e-4, "cuda": 4e-2}  # float32; bfloat16, which PyTorch's ops round after each


@dataclass(frozen=True)
class ConvPoint:
    """A layer, or an op of the spectrum family, at one length, and its cost."""

    point: Point
    length: str
    work: Cost

    def row(self, *, quick: bool, budget_s: float) -> dict[str, Any]:
        _, times, apart_us = self.point.measured(quick=quick, budget_s=budget_s)
        took = times.time_s("ours")
        others = {name: times.time_s(name).median * 1e6 for name in times.samples if name != "ours"}
        return {
            "layer": self.point.case,
            "size": self.length,
            "us": took.median * 1e6,
            "others_us": {**others, **apart_us},
            "faster": {name: times.speedup("ours", over=name).as_dict() for name in others},
            "best": min(others, key=others.get),
            "gbs": self.work.gbs(took.median),
            "gflops": 1e3 * self.work.tflops(took.median),
        }


def conv_points(options: argparse.Namespace, lacking: Lacking) -> Iterator[ConvPoint]:
    wanted = [part for part in (options.case or "").split(",") if part]

    def chosen(name: str) -> bool:
        return not wanted or any(part in name for part in wanted)

    if options.device == "cpu":
        for op in filter(chosen, CONV_PARTS):
            for length in options.lengths:
                yield _spectrum_point(op, length, options.compile)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    for layer in LAYERS:
        for length in options.lengths if chosen(layer.name) else ():
            built = Built(layer, length, options.device, dtype)
            backend = built.backend()
            if options.device == "cuda" and backend == "reference":
                lacking[f"{layer.name} {length}"] = "only the reference serves it here"
                continue
            calls = {"torch": built.torch}
            if options.compile and layer.kind in ("unit", "up", "mixer") and length != "60s":
                torch._dynamo.reset()
                fused = torch.compile(built.plain)
                calls["torch.compile"] = lambda built=built, fused=fused: fused(built.x, built.context)
            ours = {"ours": Ours(built.ours, SHORT[dtype], backend, [])}
            check = _conv_check(f"{layer.name} {length}", options.device)
            point = Point(layer.name, layer.name, options.device, ours, calls, check)
            yield ConvPoint(point, length, Cost(built.nbytes, built.flops))


def _spectrum_point(op: str, length: str, compiled: bool) -> ConvPoint:
    case = next(c for c in for_op(op, tag="sweep", large=True) if c.name == f"sweep_{length}")
    kw = case.make(seed=1)
    ready = packed(op, kw)
    calls = baselines(op, kw)
    if compiled and "F.fold" in calls:
        calls["F.fold, compiled"] = torch.compile(calls["F.fold"])
    function = getattr(ops, op)

    def ours() -> Tensor:
        out = function(**ready)
        return out if isinstance(out, Tensor) else out[0]

    mine = {"ours": Ours(ours, "fp32", serving(op, ready)[0], [])}
    point = Point(op, op, "cpu", mine, calls, _conv_check(f"{op} {length}", "cpu"))
    return ConvPoint(point, length, cost(op, kw, (ours(),)))


def _conv_check(name: str, device: str) -> Callable[[dict[str, Any]], None]:
    def check(results: dict[str, Any]) -> None:
        expected = results["ours"]
        for baseline, got in results.items():
            missing = expected.shape[-1] - got.shape[-1] if baseline == "torch.istft" else 0
            error = max_relative(got, expected[..., missing // 2 :][..., : got.shape[-1]])
            if not error <= CONV_AGREE[device]:
                raise AssertionError(f"{name}: {baseline} differs by {error:.2e}")

    return check
