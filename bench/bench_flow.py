"""The whole flow sampler, per patch, against every ordinary way to compute it.

Sizes of the model: 8 blocks of width 1024, 10 steps, guidance 2; 11 tokens (history 5, patch 5) or
37 (history 32, patch 4). The weights are larger than any cache. Every way is checked before it is
timed; all take turns, but for those that are so slow that the others would hardly get one. Then
come where the time goes, the design's bars, and one line of JSON last.
`python bench/bench_flow.py --tokens 11 --batches 1,4 --keep FOLDER --add`
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench")]

import bars  # noqa: E402
import flow_phases  # noqa: E402
import flow_ways  # noqa: E402
import measure  # noqa: E402
import reporting  # noqa: E402

from mingcore import ops  # noqa: E402
from mingcore.ops._core import dispatch, registry  # noqa: E402
from mingcore.ops._core.cases import Draw  # noqa: E402
from mingcore.ops.flow.cases import head_weights  # noqa: E402
from mingcore.testing.compare import max_relative  # noqa: E402
from mingcore.testing.cost import cost  # noqa: E402
from mingcore.testing.roofline import Ceilings, ceilings  # noqa: E402
from mingcore.testing.timing import Comparison, events_interleaved, graph_interleaved, threads  # noqa: E402

SIZES = {
    "real": {"L": 8, "H": 1024, "W": 4096, "C": 64, "Hc": 2048, "heads": 16},
    "tiny": {"L": 2, "H": 64, "W": 128, "C": 16, "Hc": 48, "heads": 4},
}
TOKENS = {11: (5, 5), 37: (32, 4)}  # history and patch
BATCHES = (1, 2, 4, 8, 32)
FORMATS = {"cpu": ("fp32", "bf16", "fp16", "int8", "int8_dyn"), "cuda": ("bf16", "int8", "fp8")}
STEPS, GUIDANCE = 10, 2.0
# of the reference on the same operands: float32 activations; 16-bit ones; rounding the other way
EXACT, NARROW, DYNAMIC = 1e-4, 4e-2, 5e-2
# of the float32 way, by what a format or a dtype loses
LOSES = {"fp32": 1e-3, "bf16": 0.1, "fp16": 2e-2, "int8": 0.1, "int8_dyn": 0.2, "fp8": 0.3}
SLOW = 8  # times the fastest of ours: such ways are called only once more

Calls = dict[str, Callable[[], Any]]


class Heads:
    """One random head, packed in every format, and in rows of float32 for the other ways."""

    def __init__(self, size: str, device: str, formats: tuple[str, ...]):
        self.device, self.dims = device, SIZES[size]
        # on a GPU everything is bfloat16, on a CPU activations are float32
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32
        weights = head_weights(Draw(device, self.dtype, 0), **self.dims)
        self.rows = ops.pack_flow_head(**weights, backend="reference")
        self.packed = {f: ops.pack_flow_head(**weights, format=f) for f in formats}

    def arguments(self, B: int, tokens: int) -> dict[str, Any]:
        """For `ops.flow_sample`, but for the head."""
        N, P = TOKENS[tokens]
        C, d = self.dims["C"], Draw(self.device, self.dtype, 1)
        return {
            "schedule": ops.FlowSchedule.make(STEPS),
            "condition": d.normal(B, self.dims["Hc"]),
            "history": d.normal(B, N, C),
            "noise": d.normal(STEPS + 1, B, P, C, dtype=torch.float32),
            "guidance": GUIDANCE,
        }


def check(kw: dict[str, Any], got: Tensor) -> None:
    """Against the reference on the same operands, first and last request; AssertionError."""
    ends = slice(None) if len(got) <= 2 else slice(0, None, len(got) - 1)
    few = {name: kw[name][ends] for name in ("condition", "history")}
    part = {**kw, **few, "noise": kw["noise"][:, ends]}
    expected = ops.flow_sample(**part, backend="reference")
    limit = NARROW if kw["condition"].dtype != torch.float32 else EXACT
    limit = DYNAMIC if kw["head"].format == "int8_dyn" else limit
    error = max_relative(got[ends], expected)
    if not error <= limit:
        raise AssertionError(f"{kw['head'].format}: {error:.2e} from the reference, limit {limit}")


def point(
    heads: Heads, B: int, tokens: int, ceiling: Ceilings, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of one batch size, one per format; and why formats lack."""
    plain, device = heads.arguments(B, tokens), heads.device
    calls: Calls = {}
    arguments, backends, lacking = {}, {}, {}
    for format, head in heads.packed.items():
        kw = {**plain, "head": head}
        backends[format], reasons = serving(kw)
        if backends[format] == "reference" and not options.reference:
            lacking[format] = reasons
            continue
        arguments[format] = kw
        calls[f"ours {format}"] = _bind(kw)
    if not calls:
        return [], lacking
    dtypes = (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)
    if options.ways != ("none",):
        kw = {**plain, "head": heads.rows}
        calls.update(flow_ways.ways(kw, dtypes, options.ways))
    results, took_s = {}, {}
    for name, call in calls.items():
        if name.startswith("torch.compile"):
            call()
        began = time.perf_counter()
        results[name] = call()
        took_s[name] = time.perf_counter() - began
    for format, kw in arguments.items():
        check(kw, results[f"ours {format}"])
    _agree(results)
    measured, apart_us = timed(calls, took_s, device, options)
    rows = []
    for format, kw in arguments.items():
        name = f"ours {format}"
        work = cost("flow_sample", kw, (results[name],))
        case = f"{options.size}_{tokens}_b{B}"
        head = ("flow_sample", case, format, device, backends[format], "cold")
        row = measure.make_row(head, work, ceiling.read_gbs, measured, name).as_dict()
        row["others_us"].update(apart_us)
        row["others_x"].update({other: us / row["us"] for other, us in apart_us.items()})
        if options.phases:
            row["phases_ms"] = flow_phases.phases_ms(kw, options.budget, options.quick)
        rows.append(row)
    return rows, lacking


def _bind(kw: dict[str, Any]) -> Callable[[], Tensor]:
    return lambda: ops.flow_sample(**kw)


def _agree(results: dict[str, Tensor]) -> None:
    """All compute the same thing, to within what their type loses."""
    anchor = next((r for n, r in results.items() if not n.startswith("ours")), None)
    for name, got in results.items():
        limit = LOSES[name.replace(",", "").split()[-1]]
        if anchor is not None and not max_relative(got, anchor) <= limit:
            error = max_relative(got, anchor)
            raise AssertionError(f"{name} differs from the first other way by {error:.2e}")


def timed(
    calls: Calls, took_s: dict[str, float], device: str, options: argparse.Namespace
) -> tuple[Comparison, dict[str, float]]:
    """All in turns, and µs of those timed apart: the slow ones, and on a GPU the same ways called
    from Python, without a graph."""
    rounds = 3 if options.quick else 15
    if device == "cuda":
        loops = {n: c for n, c in calls.items() if not n.startswith("ours")}
        apart = events_interleaved(loops, rounds=3, budget_s=options.budget)
        found = {f"{name}, no graph": us for name, us in _medians_us(apart).items()}
        graphs = {(n if n.startswith("ours") else f"{n}, CUDA graph"): c for n, c in calls.items()}
        return graph_interleaved(graphs, budget_s=options.budget), found
    limit = SLOW * min(s for name, s in took_s.items() if name.startswith("ours"))
    apart = {n: c for n, c in calls.items() if took_s[n] > limit and not n.startswith("ours")}
    rest = {n: c for n, c in calls.items() if n not in apart}
    measured = in_turns(rest, rounds, options.budget)
    return measured, {name: took_s[name] * 1e6 for name in apart}


def in_turns(calls: Calls, rounds: int, budget_s: float) -> Comparison:
    """One call of each in every round; no further round begins after `budget_s` seconds. What was
    checked has been called before: a call takes a tenth of a second to many."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for i in range(rounds):
        if i and time.perf_counter() - began > budget_s:
            break
        names = list(calls)
        for name in reversed(names) if i % 2 else names:
            start = time.perf_counter()
            calls[name]()
            samples[name].append(time.perf_counter() - start)
    return Comparison(samples)


def _medians_us(measured: Comparison) -> dict[str, float]:
    return {name: measured.time_s(name).median * 1e6 for name in measured.samples}


def floor_ms(row: dict[str, Any], ceiling: dict[str, Any]) -> float:
    """The least time: bytes at the read probe's rate, or operations at that of one large product:
    float32 on a CPU, bfloat16 on a GPU."""
    rate = ceiling["gemm_tflops"]["fp32" if row["device"] == "cpu" else "bf16"]
    return 1e3 * max(row["nbytes"] / ceiling["read_gbs"] / 1e9, row["flops"] / rate / 1e12)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    device = options.device
    with threads(options.threads), torch.inference_mode():
        heads = Heads(options.size, device, options.formats or FORMATS[device])
        ceiling = ceilings(device, quick=options.quick)
        rows: list[dict[str, Any]] = []
        lacking: dict[str, str] = {}
        for tokens in options.tokens:
            for B in options.batches:
                found, why = point(heads, B, tokens, ceiling, options)
                rows += found
                lacking.update(why)
                print(f"{tokens} tokens, B={B}: {len(found)} formats", file=sys.stderr, flush=True)
        content = reporting.result(
            "flow",
            size=options.size,
            device=device,
            dims=heads.dims,
            steps=STEPS,
            guidance=GUIDANCE,
            ceilings={device: ceiling.as_dict()},
            rows=rows,
            lacking=lacking,
        )
    name = f"flow-{options.size}-{device}"
    if options.add:
        content = added(reporting.kept(name, options.keep), content)
    show(content)
    if options.keep:
        print(f"kept in {reporting.keep(name, content, options.keep)}")
    reporting.last_line(content)
    return 0


def added(before: dict[str, Any] | None, content: dict[str, Any]) -> dict[str, Any]:
    """A result with the rows of an earlier part, where it has none itself; all are held to the
    highest ceiling that any part saw. SystemExit when the parts do not belong together."""
    if before is None:
        return content
    for what in ("commit", "cpu", "threads", "gpu"):
        old, new = before["machine"][what], content["machine"][what]
        if old != new:
            raise SystemExit(f"bench_flow: --add to a result of another {what}: {old}, not {new}")
    device = content["device"]
    old, new = before["ceilings"][device], content["ceilings"][device]
    gemms = {k: max(old["gemm_tflops"][k], v) for k, v in new["gemm_tflops"].items()}
    best = {k: max(old[k], new[k]) for k in ("read_gbs", "copy_gbs")}
    measured = {(row["case"], row["dtype"]) for row in content["rows"]}
    rows = [r for r in before["rows"] if (r["case"], r["dtype"]) not in measured]
    rows = sorted(rows + content["rows"], key=lambda r: tuple(map(int, _numbers(r["case"]))))
    return {
        **content,
        "ceilings": {device: {**new, **best, "gemm_tflops": gemms}},
        "rows": [{**row, "read_share": row["gbs"] / best["read_gbs"]} for row in rows],
        "lacking": {**before["lacking"], **content["lacking"]},
    }


def _numbers(case: str) -> tuple[str, str]:
    _, tokens, B = case.rsplit("_", 2)
    return tokens, B[1:]


def show(content: dict[str, Any]) -> None:
    device, rows = content["device"], content["rows"]
    ceiling = content["ceilings"][device]
    print(f"{bars.table_of('flow', content)}\n")
    cases: dict[str, dict[str, float]] = {}
    for row in rows:
        times = cases.setdefault(row["case"], {})
        times[f"ours {row['dtype']}"] = row["us"]
        times.update(row["others_us"])
        times["floor"] = 1e3 * floor_ms(row, ceiling)
    columns = dict.fromkeys(name for times in cases.values() for name in times)
    body = [(name, *(_ms(times.get(name)) for times in cases.values())) for name in columns]
    print(f"{reporting.table(('ms', *cases), body)}\n")
    with_phases = [row for row in rows if "phases_ms" in row]
    if with_phases:
        head = ("ms by phase", "format", *with_phases[0]["phases_ms"], "one call", "% floor")
        lines = []
        for row in with_phases:
            phases, share = row["phases_ms"].values(), _share(row, ceiling)
            lines.append((row["case"], row["dtype"], *phases, row["us"] / 1e3, share))
        print(f"{reporting.table(head, lines)}\n")
    for format, why in content["lacking"].items():
        print(f"{format}: not measured, only the reference serves it here ({why})")
    rate = ceiling["gemm_tflops"]["fp32" if device == "cpu" else "bf16"]
    print(f"100 % on {device}: read {ceiling['read_gbs']:.1f} GB/s, torch.mm {rate:.3f} TFLOP/s")
    judged = [b for b in bars.judge({"flow": content}, device) if b.name.startswith("flow")]
    print(bars.table(judged))


def _share(row: dict[str, Any], ceiling: dict[str, Any]) -> int:
    return round(100 * floor_ms(row, ceiling) / (row["us"] / 1e3))


def _ms(us: float | None) -> float | None:
    return None if us is None else us / 1e3


def serving(kw: dict[str, Any]) -> tuple[str, str]:
    """Which backend would serve this call, without calling it; and why no native one does."""
    taken = []
    original = dispatch.select

    def select(op: str, args: tuple, backend: str | None) -> Callable[..., Any]:
        function = original(op, args, backend)
        if op != "flow_sample":  # what prepares its arguments
            return function
        taken.append((function, args))
        return lambda *_: None

    dispatch.select = select
    try:
        ops.flow_sample(**kw)
    finally:
        dispatch.select = original
    ((function, args),) = taken
    backend = next(entry.backend for entry in registry.entries() if entry.function is function)
    natives = ("cpu",) if kw["noise"].device.type == "cpu" else ("cuda", "triton")
    return backend, "; ".join(f"{b}: {ops.why_not('flow_sample', b, *args)}" for b in natives)


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(map(int, text.split(",")))
    if min(counts) < 1:
        raise argparse.ArgumentTypeError(f"must be >= 1, got {min(counts)}")
    return counts


def _options(arguments: list[str] | None) -> argparse.Namespace:
    known = ("fp32", "bf16", "fp16", "int8", "int8_dyn", "fp8")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--size", choices=list(SIZES), default="real")
    parser.add_argument("--tokens", type=_counts, default=tuple(TOKENS), help="11, 37 or both")
    parser.add_argument("--batches", type=_counts, default=BATCHES)
    parser.add_argument("--formats", type=lambda text: tuple(text.split(",")), help="of ours")
    parser.add_argument(
        "--ways",
        type=lambda text: tuple(text.split(",")),
        default=flow_ways.WAYS[:3],
        help=f"of {', '.join(flow_ways.WAYS)}, or none; default: all but the last",
    )
    parser.add_argument("--no-phases", dest="phases", action="store_false")
    parser.add_argument("--reference", action="store_true", help="also what only it serves")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds per case")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it all run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--add", action="store_true", help="to what is kept there")
    options = parser.parse_args(arguments)
    if options.add and options.keep is None:
        parser.error("--add needs --keep FOLDER")
    for name, given, allowed in (
        ("--tokens", options.tokens, TOKENS),
        ("--formats", options.formats or (), known),
        ("--ways", options.ways, (*flow_ways.WAYS, "none")),
    ):
        if unknown := [x for x in given if x not in allowed]:
            parser.error(f"{name} must be of {', '.join(map(str, allowed))}, got {unknown[0]}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_flow: no GPU here that PyTorch can use")
    return options


if __name__ == "__main__":
    sys.exit(main())
