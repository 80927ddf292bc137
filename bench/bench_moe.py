"""The expert MLP from one token to thousands, cold, against every ordinary way to compute it.

Bytes count the experts that were hit; weights rotate over several layers' worth, so that none stay
in a cache. Every way is checked before it is timed; all take turns. Then come the design's bars,
and one line of JSON last. `python bench/bench_moe.py --size real --tokens 1,8,512`; with
`--keep FOLDER --add` it adds to what an earlier run of the same commit kept there, so that a long
series can be made in parts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench")]

import bars  # noqa: E402
import measure  # noqa: E402
import moe_ways  # noqa: E402
import reporting  # noqa: E402
from moe_layers import ROUTINGS, SIZES, Layers, Tokens, check, memory  # noqa: E402

from mingcore import ops  # noqa: E402
from mingcore.ops._core import dispatch, registry  # noqa: E402
from mingcore.testing.compare import max_relative  # noqa: E402
from mingcore.testing.cost import Cost, cost  # noqa: E402
from mingcore.testing.roofline import Ceilings, ceilings, fastest_read  # noqa: E402
from mingcore.testing.timing import Comparison, events_interleaved, graph_interleaved, interleaved, rotate, threads  # noqa: E402

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 4096)
FORMATS = {"cpu": ("bf16", "fp32", "fp16", "int8", "int8_dyn"), "cuda": ("bf16", "int8", "fp8")}
ANCHOR = "loop over the experts hit, bf16"
# how far ways in bfloat16, and formats that lose more, may be from each other
AGREE = {"int8": 0.1, "int8_dyn": 0.15, "fp8": 0.25}
SLOW = 20  # times the fastest
PROBE = "read probe"
LOOP_OVER_ALL = 128  # tokens; with more every expert is hit, and both loops are one

Calls = dict[str, Callable[[], Any]]


def point(
    layers: Layers, T: int, routing: str, ceiling: Ceilings, quick: bool, budget_s: float
) -> tuple[list[measure.Row], dict[str, str]]:
    """The rows of one number of tokens and one routing, one per format; and why formats lack."""
    device = layers.device
    tokens = [Tokens.random(layers.size, T, routing, device, i) for i in range(layers.count)]
    backends, lacking, calls = {}, {}, {}
    for format, packed in layers.packed.items():
        sets = [t.arguments(experts) for t, experts in zip(tokens, packed)]
        chosen, reason = serving(sets[0])
        if chosen == "reference":
            lacking[format] = reason
            continue
        backends[format] = chosen
        calls[f"ours {format}"] = rotate(ops.moe_mlp, sets)
    calls.update(_ways(tokens, layers))
    results, took_s = {}, {}
    for name, call in calls.items():  # every rotation begins at set 0
        began = time.perf_counter()
        results[name] = call()
        took_s[name] = time.perf_counter() - began
    for name, got in results.items():
        limit = AGREE.get(name.removeprefix("ours "), measure.AGREE[torch.bfloat16])
        error = max_relative(got, results[ANCHOR])
        if not error <= limit:
            raise AssertionError(f"{routing} T={T}: {name} differs from the loop by {error:.2e}")
    for format in backends:
        check(layers.packed[format][0], tokens[0], results[f"ours {format}"])
    probe, probe_bytes = _probe((4 if quick else 8) * ceiling.cache_bytes) if device == "cpu" else ({}, 0)
    measured, apart_us = _timed({**calls, **probe}, took_s, device, quick, budget_s)
    rows = []
    for format, backend in backends.items():
        name = f"ours {format}"
        sets = [t.arguments(e) for t, e in zip(tokens, layers.packed[format])]
        work = _mean([cost("moe_mlp", kw, (results[name],)) for kw in sets])
        cold = work.nbytes * layers.count > ceiling.cache_bytes and layers.count > 1
        case = f"{_name(layers)}_{routing}_t{T}"
        head = ("moe_mlp", case, format, device, backend, "cold" if cold else "warm")
        ways = Comparison({n: s for n, s in measured.samples.items() if n != PROBE})
        row = measure.make_row(head, work, ceiling.read_gbs, ways, name)
        if probe:  # in the same rounds: the memory's own pace changes while a bench runs
            share = measured.speedup(name, over=PROBE).median * work.nbytes / probe_bytes
            row = replace(row, read_share=share)
        apart_x = {other: us / row.us for other, us in apart_us.items()}
        row = replace(row, others_us={**row.others_us, **apart_us})
        rows.append(replace(row, others_x={**row.others_x, **apart_x}))
    return rows, lacking


@lru_cache(maxsize=1)
def _probe(nbytes: int) -> tuple[Calls, int]:
    """The read probe of the ceilings as one more call, and the bytes that it reads."""
    x = torch.randn(nbytes // 2, dtype=torch.bfloat16)
    return {PROBE: fastest_read(x)}, x.nbytes


def _name(layers: Layers) -> str:
    return next(name for name, size in SIZES.items() if size == layers.size)


def serving(kwargs: dict[str, Any]) -> tuple[str, str]:
    """Which backend would serve this call, without calling it; and why no native one does."""
    taken = []
    original = dispatch.select

    def select(op: str, args: tuple, backend: str | None) -> Callable[..., Any]:
        taken.append((original(op, args, backend), args))
        return lambda x, *_: x

    dispatch.select = select
    try:
        ops.moe_mlp(**kwargs)
    finally:
        dispatch.select = original
    ((function, args),) = taken
    backend = next(entry.backend for entry in registry.entries() if entry.function is function)
    natives = ("cpu",) if kwargs["x"].device.type == "cpu" else ("cuda", "triton")
    reasons = (f"{b}: {ops.why_not('moe_mlp', b, *args)}" for b in natives)
    return backend, "; ".join(reasons)


def _ways(tokens: list[Tokens], layers: Layers) -> Calls:
    """The other ways, in bfloat16; the loops in float32 as well, where there are such rows."""
    found: dict[str, list[moe_ways.Way]] = {}
    for i, each in enumerate(tokens):
        rows = {"bf16": layers.rows[i]}
        if layers.wide:
            rows["fp32"] = layers.wide[i % len(layers.wide)]
        for dtype, weights in rows.items():
            for name, way in moe_ways.ways(each.arguments(weights)):
                if name == "loop over all experts" and len(each.x) > LOOP_OVER_ALL:
                    continue
                if dtype == "bf16" or name.startswith("loop"):
                    found.setdefault(f"{name}, {dtype}", []).append(way)
    return {name: rotate(_call, [(way,) for way in ways]) for name, ways in found.items()}


def _call(way: moe_ways.Way) -> Any:
    return way()


def _timed(
    calls: Calls, took_s: dict[str, float], device: str, quick: bool, budget_s: float
) -> tuple[Comparison, dict[str, float]]:
    """All in turns, but for those that are timed apart, in µs by name: on a GPU the loops, which
    wait for it; on a CPU what is so slow that the others would hardly get a turn."""
    if device == "cuda":
        apart = {name: call for name, call in calls.items() if name.startswith("loop")}
        slow = events_interleaved(apart, rounds=3, budget_s=budget_s)
        rest = {name: call for name, call in calls.items() if name not in apart}
        return graph_interleaved(rest, budget_s=budget_s), _medians_us(slow)
    limit = SLOW * min(took_s.values())
    apart = {name: call for name, call in calls.items() if took_s.get(name, 0) > limit}
    apart = {name: call for name, call in apart.items() if not name.startswith("ours")}
    apart_us = {name: took_s[name] * 1e6 for name in apart}  # its one call, if that is long
    again = {name: call for name, call in apart.items() if took_s[name] < budget_s}
    if again:
        apart_us.update(_medians_us(interleaved(again, rounds=3, warmup=1)))
    rest = {name: call for name, call in calls.items() if name not in apart}
    rounds = 3 if quick else 15
    return interleaved(rest, rounds=rounds, budget_s=budget_s, warmup=1), apart_us


def _medians_us(measured: Comparison) -> dict[str, float]:
    return {name: measured.time_s(name).median * 1e6 for name in measured.samples}


def _mean(costs: list[Cost]) -> Cost:
    nbytes, flops = (sum(getattr(c, n) for c in costs) // len(costs) for n in ("nbytes", "flops"))
    return Cost(nbytes, flops)


def ways_table(rows: list[measure.Row]) -> str:
    """µs of every way, one line per case."""
    cases: dict[str, dict[str, float]] = {}
    for row in rows:
        times = cases.setdefault(row.case, {})
        times[f"ours {row.dtype}"] = row.us
        times.update(row.others_us)
    names = dict.fromkeys(name for times in cases.values() for name in times)
    body = [(case, *(times.get(name) for name in names)) for case, times in cases.items()]
    return reporting.table(("µs", *names), body)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    device, size = options.device, SIZES[options.size]
    layers = Layers(size, device, options.layers, options.formats or FORMATS[device])
    if device == "cpu" and memory() < layers.need() + (1 << 30):
        raise SystemExit(
            f"bench_moe: {options.layers} layers of size {options.size} need "
            f"{layers.need() / 2**30:.1f} GiB of memory, {memory() / 2**30:.1f} GiB is available; "
            "name fewer with --formats or --layers"
        )
    rows: list[measure.Row] = []
    lacking: dict[str, str] = {}
    with threads(options.threads), torch.inference_mode():
        ceiling = ceilings(device, quick=options.quick)
        for T in options.tokens or (TOKENS if device == "cuda" else TOKENS[:-1]):
            for routing in options.routing:
                found, why = point(layers, T, routing, ceiling, options.quick, options.budget)
                rows += found
                lacking.update(why)
                print(f"{routing} T={T}: {len(found)} formats", file=sys.stderr, flush=True)
        content = reporting.result(
            "moe",
            size=options.size,
            device=device,
            dims=asdict(size),
            layers=options.layers,
            ceilings={device: ceiling.as_dict()},
            rows=[row.as_dict() for row in rows],
            lacking=lacking,
        )
    if options.add:
        content = added(reporting.kept(f"moe-{options.size}-{device}", options.keep), content)
    show(content)
    if options.keep:
        print(f"kept in {reporting.keep(f'moe-{options.size}-{device}', content, options.keep)}")
    reporting.last_line(content)
    return 0


def added(before: dict[str, Any] | None, content: dict[str, Any]) -> dict[str, Any]:
    """A result with the rows of an earlier part, where it has none itself, and the highest ceiling
    that either saw. SystemExit when the parts do not belong together."""
    if before is None:
        return content
    for what in ("commit", "cpu", "threads", "gpu"):
        old, new = before["machine"][what], content["machine"][what]
        if old != new:
            raise SystemExit(f"bench_moe: --add to a result of another {what}: {old}, not {new}")
    if before["layers"] != content["layers"]:
        raise SystemExit(f"bench_moe: --add to a result of {before['layers']} layers")
    device = content["device"]
    old, new = before["ceilings"][device], content["ceilings"][device]
    gemms = {k: max(old["gemm_tflops"][k], v) for k, v in new["gemm_tflops"].items()}
    best = {k: max(old[k], new[k]) for k in ("read_gbs", "copy_gbs")}
    measured = {(row["case"], row["dtype"]) for row in content["rows"]}
    rows = [r for r in before["rows"] if (r["case"], r["dtype"]) not in measured]
    rows = sorted(rows + content["rows"], key=lambda row: _order(row["case"]))
    return {
        **content,
        "ceilings": {device: {**new, **best, "gemm_tflops": gemms}},
        "rows": rows,
        "lacking": {**before["lacking"], **content["lacking"]},
    }


def _order(case: str) -> tuple[int, int]:
    _, routing, T = case.rsplit("_", 2)
    return int(T[1:]), list(ROUTINGS).index(routing)


def show(content: dict[str, Any]) -> None:
    rows = [measure.Row(**row) for row in content["rows"]]
    device = content["device"]
    ceiling = content["ceilings"][device]
    if rows:
        print(f"{bars.table_of('moe', content)}\n\n{ways_table(rows)}\n")
    for format, why in content["lacking"].items():
        print(f"{format}: not measured, only the reference serves it here ({why})")
    print(f"100 % on {device}: read {ceiling['read_gbs']:.1f} GB/s ({ceiling['threads']} threads)")
    judged = [b for b in bars.judge({"moe": content}, device) if b.name.startswith("moe_mlp")]
    print(bars.table(judged))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    formats = ("fp32", "bf16", "fp16", "int8", "int8_dyn", "fp8")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=list(SIZES), default="mid")
    parser.add_argument("--tokens", type=_counts, help=f"of {TOKENS}, or others; default: all, on a CPU to 512")
    parser.add_argument("--routing", type=_names(ROUTINGS), default=tuple(ROUTINGS))
    parser.add_argument("--formats", type=_names(formats), help="of our weights")
    parser.add_argument("--layers", type=int, default=4, help="that weights rotate over")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per case")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it all run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--add", action="store_true", help="to what is kept there")
    options = parser.parse_args(arguments)
    if options.add and options.keep is None:
        parser.error("--add needs --keep FOLDER")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_moe: no GPU here that PyTorch can use")
    return options


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(map(int, text.split(",")))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"counts of tokens must be >= 1, got {min(counts)}")
    return counts


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return tuple(text.split(","))

    return parse


if __name__ == "__main__":
    sys.exit(main())
