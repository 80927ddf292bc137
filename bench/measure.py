"""One point of a benchmark: right first, then timed in turns, then held to the ceilings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mingcore import ops
from mingcore.ops._core.cases import Case, Cost, baselines, cost
from mingcore.ops._core.layouts import tensors_in
from mingcore.ops._core.op import watching
from mingcore.testing.compare import check_op, max_relative, run
from mingcore.testing.roofline import Ceilings, ceilings
from mingcore.testing.timing import Comparison, events_interleaved, graph_interleaved, interleaved, rotate, sets_for

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
AGREE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
HEAD = ("op", "case", "dtype", "backend", "cache", "us", "GB/s", "% read", "TFLOP/s", "x best", "best baseline")
PROBE = "read probe"

Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """One op, case, dtype and cache mode on one device.

    others_x: how many times faster ours is than each baseline, the median of the rounds' ratios; so
    what slowed the machine down for a while slowed both.
    """

    op: str
    case: str
    dtype: str
    device: str
    backend: str
    cache: str
    us: float
    us_p10: float
    us_p90: float
    nbytes: int
    flops: int
    gbs: float
    read_share: float
    tflops: float
    others_us: dict[str, float]
    others_x: dict[str, float]
    best: str | None
    speedup: float | None
    speedup_p10: float | None
    speedup_p90: float | None

    def cells(self) -> tuple[Any, ...]:
        head = (self.op, self.case, self.dtype, self.backend, self.cache)
        return (*head, self.us, self.gbs, round(100 * self.read_share), self.tflops, self.speedup, self.best)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Ours:
    """A call of ours, its dtype or weight format, who serves it, and the arguments that it rotates over."""

    call: Callable[[], Any]
    dtype: str
    backend: str
    sets: list[dict[str, Any]]


@dataclass(frozen=True)
class Point:
    """What is checked and timed together. Names of ours begin with "ours".

    check: results by name -> AssertionError where one is wrong. cache: None is decided by the bytes
    of a rotation. slow: baselines that take so many times as long as ours are timed apart. probe: the read
    probe as one more call, and its bytes. eager_too: on a GPU baselines are timed from Python as well.
    """

    op: str
    case: str
    device: str
    ours: dict[str, Ours]
    baselines: Calls
    check: Callable[[dict[str, Any]], None]
    outputs: tuple[torch.Tensor, ...] | None = None  # of ours; None: what its call returns
    cache: str | None = None
    slow: float = math.inf
    probe: tuple[Calls, int] = ({}, 0)
    eager_too: bool = False

    def rows(self, ceiling: Ceilings, *, quick: bool = False, budget_s: float = 1.0) -> list[Row]:
        """A row for each of ours. Raises AssertionError when a result is wrong: nothing is timed then."""
        results, measured, apart_us = self.measured(quick=quick, budget_s=budget_s)
        rows = []
        for name, ours in self.ours.items():
            work = _mean([cost(self.op, kw, self.outputs or (results[name],)) for kw in ours.sets])
            cold = len(ours.sets) > 1 and work.nbytes * len(ours.sets) > ceiling.cache_bytes
            cache = self.cache or ("cold" if cold else "warm")
            head = (self.op, self.case, ours.dtype, self.device, ours.backend, cache)
            in_turns = Comparison({n: s for n, s in measured.samples.items() if n != PROBE})
            row = make_row(head, work, ceiling.read_gbs, in_turns, name)
            if PROBE in measured.samples:  # in the same rounds: the memory's own pace changes while a bench runs
                share = measured.speedup(name, over=PROBE).median * work.nbytes / self.probe[1]
                row = replace(row, read_share=share)
            apart_x = {other: us / row.us for other, us in apart_us.items()}
            rows.append(replace(row, others_us={**row.others_us, **apart_us}, others_x={**row.others_x, **apart_x}))
        return rows

    def measured(self, *, quick: bool, budget_s: float) -> tuple[dict[str, Any], Comparison, dict[str, float]]:
        """Results by name, the rounds, and µs of what was timed apart."""
        calls = {**{name: each.call for name, each in self.ours.items()}, **self.baselines}
        results, took_s = {}, {}
        for name, call in calls.items():  # every rotation begins at set 0
            if name.startswith("torch.compile"):
                call()
            began = time.perf_counter()
            results[name] = call()
            took_s[name] = time.perf_counter() - began
        self.check(results)
        calls.update(self.probe[0])
        if self.device != "cuda":
            return results, *timed_on_cpu(calls, took_s, self.slow, quick, budget_s)
        if any(each.backend == "reference" for each in self.ours.values()):  # it may wait for the device
            return results, events_interleaved(calls, budget_s=budget_s), {}
        return results, *timed_on_gpu(calls, self.eager_too, budget_s)


def timed_on_cpu(
    calls: Calls, took_s: dict[str, float], slow: float, quick: bool, budget_s: float
) -> tuple[Comparison, dict[str, float]]:
    """All in turns, but for baselines so slow that the others would hardly get a turn: those apart, in µs."""
    limit = slow * min(took for name, took in took_s.items() if name.startswith("ours"))
    apart = {n: c for n, c in calls.items() if took_s.get(n, 0) > limit and not n.startswith("ours")}
    apart_us = {name: took_s[name] * 1e6 for name in apart}  # its one call, if that is long
    again = {name: call for name, call in apart.items() if took_s[name] < budget_s}
    if again:
        apart_us.update(medians_us(interleaved(again, rounds=3, warmup=1)))
    rest = {name: call for name, call in calls.items() if name not in apart}
    return interleaved(rest, rounds=3 if quick else 15, budget_s=budget_s, warmup=1), apart_us


def timed_on_gpu(calls: Calls, eager_too: bool, budget_s: float) -> tuple[Comparison, dict[str, float]]:
    """CUDA graphs in turns; apart, in µs, the loops, which wait for the device, so that a graph cannot
    hold them. eager_too: every baseline in both."""
    theirs = {n for n in calls if not n.startswith("ours") and n != PROBE}
    loops = {name for name in theirs if name.startswith("loop")}
    apart = {name: call for name, call in calls.items() if name in (theirs if eager_too else loops)}
    apart_us = medians_us(events_interleaved(apart, rounds=3, budget_s=budget_s))
    rest = {name: call for name, call in calls.items() if name not in loops}
    if eager_too:
        apart_us = {f"{name}, no graph": us for name, us in apart_us.items()}
        rest = {f"{name}, CUDA graph" if name in theirs else name: call for name, call in rest.items()}
    return graph_interleaved(rest, budget_s=budget_s), apart_us


def medians_us(measured: Comparison) -> dict[str, float]:
    return {name: measured.time_s(name).median * 1e6 for name in measured.samples}


def _mean(costs: list[Cost]) -> Cost:
    nbytes, flops = (sum(getattr(c, n) for c in costs) // len(costs) for n in ("nbytes", "flops"))
    return Cost(nbytes, flops)


def packed(op: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with weights packed at load, as the model does."""
    kwargs = dict(kwargs)
    if op in ("linear", "frame_embed", "spectrum_head"):
        weight, hint = kwargs["weight"], kwargs.get("activation")
        format = None
        if isinstance(weight, ops.PackedLinear):
            weight, format = weight.unpack(), weight.format
        kwargs["weight"] = ops.pack_linear(weight, format=format, activation=hint)
    if op == "moe_mlp" and isinstance(kwargs["experts"], tuple):
        kwargs["experts"] = ops.pack_experts(*kwargs["experts"], shared=kwargs.pop("shared", None))
    return kwargs


def against(op: str, kwargs: dict[str, Any], wanted: str) -> Calls:
    """The baselines that are `wanted`: "best" (the usual ones), "all", "none", or parts of names by comma."""
    if wanted == "none":
        return {}
    found = baselines(op, kwargs, more=wanted != "best")
    if wanted in ("best", "all"):
        return found
    return {name: call for name, call in found.items() if any(part in name for part in wanted.split(","))}


def ops_point(
    case: Case, dtype: torch.dtype, *, device: str = "cpu", cold: bool = True, quick: bool = False, wanted: str = "best"
) -> Point:
    """A case of an op in one dtype. Raises AssertionError when ours differs from the oracle."""
    op, first = case.op, case.make(device, dtype, seed=1)
    check_op(op, first)
    expected = run(op, first, backend="reference")
    work, cache_bytes = cost(op, first, expected), ceilings(device, quick=quick).cache_bytes
    room = (8 << 30) if device == "cuda" else (1 << 30)
    count = sets_for(work.nbytes, cache_bytes, room) if cold and not quick else 1
    sets = [first, *(_another(case, dtype, device, first, seed) for seed in range(2, count + 1))]
    ready, theirs = [packed(op, kw) for kw in sets], [against(op, kw, wanted) for kw in sets]
    ours = Ours(rotate(getattr(ops, op), ready), SHORT[dtype], serving(op, ready[0])[0], [first])

    def check(results: dict[str, Any]) -> None:
        """All compute the same; the tight check of ours is `check_op`."""
        for name, got in results.items():
            found = next(tensors_in(got), None)
            if found is None or op == "kv_write_" or not found.dtype.is_floating_point:
                continue
            error = max_relative(found, _overlap(expected[0], found))
            if not error <= AGREE[dtype]:
                raise AssertionError(f"{case.id}: {name} differs from the reference by {error:.2e}")

    return Point(
        op=op,
        case=case.name,
        device=device,
        ours={"ours": ours},
        baselines={name: rotate(_call, [(calls[name],) for calls in theirs]) for name in theirs[0]},
        check=check,
        outputs=expected,
        cache="cold" if cold and (count > 1 or work.nbytes > cache_bytes) else "warm",
    )


def _overlap(expected: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """The middle of samples, where a centred transform (torch.istft) leaves out both ends."""
    missing = expected.shape[-1] - got.shape[-1]
    return expected[..., missing // 2 :][..., : got.shape[-1]] if missing > 0 else expected


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _another(case: Case, dtype: torch.dtype, device: str, first: dict[str, Any], seed: int) -> dict[str, Any]:
    """Another input set; expert weights are shared, since other tokens choose other experts."""
    if case.op != "moe_mlp":
        return case.make(device, dtype, seed)
    generator = torch.Generator(device).manual_seed(seed)
    T, K = first["ids"].shape
    E = first["experts"][0].shape[0]
    choice = torch.rand(T, E, generator=generator, device=device).argsort(1)[:, :K]
    x = torch.randn(first["x"].shape, generator=generator, device=device, dtype=dtype)
    return {**first, "x": x, "ids": choice.to(torch.int32)}


def served(call: Callable[[], Any]) -> dict[str, str]:
    """Call it once: which backends serve it, op -> backend (joined by + where calls differ)."""
    chosen: dict[str, set[str]] = {}

    def watch(op: Any, implementation: Any, args: dict[str, Any]) -> None:
        given = op.in_place is not None and op.results[0] in args
        chosen.setdefault(op.in_place.name if given else op.name, set()).add(implementation.backend)

    with watching(watch):
        call()
    return {op: "+".join(sorted(backends)) for op, backends in sorted(chosen.items())}


def serving(op: str, kwargs: dict[str, Any]) -> tuple[str, str]:
    """Which backend would serve a call, without calling it; and why no native one does."""
    natives = ("cpu",) if next(tensors_in(kwargs)).device.type == "cpu" else ("cuda", "triton")
    reasons = (f"{b}: {ops.unsupported_reason(op, b, **kwargs)}" for b in natives)
    return ops.selected_backend(op, **kwargs), "; ".join(reasons)


def make_row(
    head: tuple[str, str, str, str, str, str], work: Cost, read_gbs: float, measured: Comparison, ours: str = "ours"
) -> Row:
    """A row of what was measured; `head` is op, case, dtype, device, backend and cache mode. The best
    baseline is none of ours."""
    took = measured.time_s(ours)
    others = {n: us for n, us in medians_us(measured).items() if n != ours}
    rivals = [n for n in others if not n.startswith("ours")]
    best = min(rivals, key=others.get) if rivals else None
    speedup = measured.speedup(ours, over=best) if best else None
    return Row(
        *head,
        us=took.median * 1e6,
        us_p10=took.low * 1e6,
        us_p90=took.high * 1e6,
        nbytes=work.nbytes,
        flops=work.flops,
        gbs=work.gbs(took.median),
        read_share=work.gbs(took.median) / read_gbs,
        tflops=work.tflops(took.median),
        others_us=others,
        others_x={name: measured.speedup(ours, over=name).median for name in others},
        best=best,
        speedup=speedup and speedup.median,
        speedup_p10=speedup and speedup.low,
        speedup_p90=speedup and speedup.high,
    )
