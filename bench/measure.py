"""One row of a benchmark: correct first, then timed in turns, then held to the ceilings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from candidates import candidates

from mingcore.ops._core import dispatch, registry
from mingcore.ops._core.cases import Case
from mingcore.ops._core.layouts import tensors_in
from mingcore.testing.compare import check_op, max_relative, run
from mingcore.testing.cost import Cost, cost
from mingcore.testing.roofline import ceilings
from mingcore.testing.timing import Comparison, events_interleaved, graph_interleaved, interleaved, rotate, sets_for

SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
AGREE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
HEAD = ("op", "case", "dtype", "backend", "cache", "us", "GB/s", "% read", "TFLOP/s", "x best", "best other")


@dataclass(frozen=True)
class Row:
    """One op, case, dtype and cache mode on one device.

    others_x: how many times faster ours is than each other way, the median of the rounds' ratios;
    so what slowed the machine down for a while slowed both.
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
        share = round(100 * self.read_share)
        return (
            self.op,
            self.case,
            self.dtype,
            self.backend,
            self.cache,
            self.us,
            self.gbs,
            share,
            self.tflops,
            self.speedup,
            self.best,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    case: Case,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    cold: bool = True,
    quick: bool = False,
    budget_s: float = 1.0,
) -> tuple[Row, Callable[[], Any]]:
    """Check, then time an op's candidates; also gives the call of "ours", for another timer.

    Raises AssertionError when a candidate is wrong: nothing is timed then.
    """
    first = case.make(device, dtype, seed=1)
    check_op(case.op, first)
    expected = run(case.op, first, backend="reference")
    work = cost(case.op, first, expected)
    ceiling = ceilings(device, quick=quick)
    count = sets_for(work.nbytes, ceiling.cache_bytes, _room(device)) if cold and not quick else 1
    sets = [first, *(_another(case, dtype, device, first, seed) for seed in range(2, count + 1))]
    prepared = [candidates(case.op, arguments) for arguments in sets]
    for name, call in prepared[0].items():
        _agree(case, name, call(), expected, AGREE[dtype])
    backend = served_by(prepared[0]["ours"])
    calls = {name: rotate(_call, [(p[name],) for p in prepared]) for name in prepared[0]}
    if device == "cuda" and backend == "reference":  # it may wait for the device
        measured = events_interleaved(calls, budget_s=budget_s)
    elif device == "cuda":
        measured = graph_interleaved(_capturable(calls), budget_s=budget_s)
    else:
        rounds = 3 if quick else 15
        measured = interleaved(calls, rounds=rounds, budget_s=budget_s, warmup=1)
    cache = "cold" if cold and (count > 1 or work.nbytes > ceiling.cache_bytes) else "warm"
    head = (case.op, case.name, SHORT[dtype], device, backend, cache)
    return make_row(head, work, ceiling.read_gbs, measured), calls["ours"]


def served_by(call: Callable[[], Any]) -> str:
    """Call it once and name the backend that served the op."""
    chosen = []
    original = dispatch.select

    def select(*arguments: Any) -> Callable[..., Any]:
        chosen.append(original(*arguments))
        return chosen[-1]

    dispatch.select = select
    try:
        call()
    finally:
        dispatch.select = original
    return next(entry.backend for entry in registry.entries() if entry.function is chosen[0])


def _call(function: Callable[[], Any]) -> Any:
    return function()


def _room(device: str) -> int:
    return (8 << 30) if device == "cuda" else (1 << 30)


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


def _agree(case: Case, name: str, got: Any, expected: tuple, limit: float) -> None:
    """The candidates compute the same thing; the tight check of ours is `check_op`."""
    found = next(tensors_in(got), None)
    if found is None or case.op == "kv_write_" or not found.dtype.is_floating_point:
        return
    error = max_relative(found, expected[0])
    if not error <= limit:
        raise AssertionError(f"{case.id}: {name} differs from the reference by {error:.2e}")


def _capturable(calls: dict[str, Callable]) -> dict[str, Callable]:
    """Without the candidates that wait for the device: a graph cannot hold them."""
    return {name: call for name, call in calls.items() if not name.startswith("loop")}


def make_row(
    head: tuple[str, str, str, str, str, str], work: Cost, read_gbs: float, measured: Comparison, ours: str = "ours"
) -> Row:
    """A row of what was measured; `head` is op, case, dtype, device, backend and cache mode.

    The best other way is none of ours: names that begin with "ours" are not its rivals.
    """
    took = measured.time_s(ours)
    others = {n: measured.time_s(n).median * 1e6 for n in measured.samples if n != ours}
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
