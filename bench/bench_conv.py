"""Convolutional codecs, layer by layer: one streamed patch, 10 s and 60 s in one shot.

Every way is checked before it is timed; all take turns within a round. Then come the design's bars
for the CPU, and one line of JSON last.
`python bench/bench_conv.py [--layers unit,up] [--sizes patch,10s,60s] [--compile] [--keep FOLDER]`;
with --keep and --add parts of a series are put together. With --device cuda the layers are
bfloat16, timed as CUDA graphs, and only where one of our kernels serves them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

import reporting  # noqa: E402
from conv_head import PATCH, Head  # noqa: E402
from conv_layers import LAYERS, Built, Size  # noqa: E402

from mingcore.ops._core import dispatch, registry  # noqa: E402
from mingcore.testing.compare import max_relative  # noqa: E402
from mingcore.testing.roofline import ceilings  # noqa: E402
from mingcore.testing.timing import graph_interleaved, interleaved  # noqa: E402

SIZES = {"patch": Size("patch", None), "10s": Size("10s", 10.0), "60s": Size("60s", 60.0)}
CONVS = ("causal_conv1d", "causal_conv_transpose1d")
PARTS = ("overlap_add", "spectrum_head", "frame_embed")
AGREE = {"cpu": 2e-4, "cuda": 4e-2}  # float32; bfloat16, which PyTorch's ops round after each
HEAD = ("layer", "size", "us", "GB/s", "GFLOP/s", "x best", "p10", "p90", "best other")
Call = Callable[[], torch.Tensor]


def measured(name: str, size: str, calls: dict[str, Call], nbytes: int, flops: int, args: argparse.Namespace):
    """One row; AssertionError, and nothing timed, when a way computes something else."""
    expected = calls["ours"]()
    for way, call in calls.items():
        got = call()
        mine = expected[..., 160 : 160 + got.shape[-1]] if way == "torch.istft" else expected
        error = max_relative(got, mine)
        if not error <= AGREE[args.device]:
            raise AssertionError(f"{name} {size}: {way} differs by {error:.2e}")
    if args.device == "cuda":
        times = graph_interleaved(calls, rounds=15, budget_s=args.budget)
    else:
        times = interleaved(calls, rounds=15, budget_s=args.budget)
    took = times.time_s("ours")
    others = {way: times.time_s(way).median * 1e6 for way in calls if way != "ours"}
    ratios = {way: times.speedup("ours", over=way).as_dict() for way in others}
    best = min(others, key=others.get)
    return {
        "layer": name,
        "size": size,
        "us": took.median * 1e6,
        "others_us": others,
        "faster": ratios,
        "best": best,
        "gbs": nbytes / took.median / 1e9,
        "gflops": flops / took.median / 1e9,
    }


def layer_rows(args: argparse.Namespace):
    for layer in LAYERS:
        if not _wanted(layer.name, args.layers):
            continue
        for size in args.sizes:
            dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
            built = Built(layer, SIZES[size], args.device, dtype)
            if args.device == "cuda" and not served(built):
                args.lacking.append(f"{layer.name} {size}")
                continue
            calls = {"ours": built.ours, "torch": built.torch}
            if args.compile and layer.kind in ("unit", "up", "mixer") and size != "60s":
                torch._dynamo.reset()
                fused = torch.compile(built.plain)
                calls["torch.compile"] = lambda built=built, fused=fused: fused(built.x, built.context)
            yield measured(layer.name, size, calls, built.nbytes, built.flops, args)


def served(built: Built) -> bool:
    """Whether a kernel of ours, and not the reference, would serve every op of a layer."""
    chosen = []
    original = dispatch.select

    def select(op: str, args: tuple, backend: str | None):
        function = original(op, args, backend)
        chosen.append(function)
        return function

    dispatch.select = select
    try:
        built.ours()
    finally:
        dispatch.select = original
    references = [registry.entry(op, "reference").function for op in CONVS]
    return not any(function in references for function in chosen)


def head_rows(args: argparse.Namespace):
    for part in PARTS:
        if not _wanted(part, args.layers):
            continue
        for size in args.sizes:
            seconds = SIZES[size].seconds
            head = Head(PATCH if seconds is None else round(50 * seconds), seconds is None)
            calls = head.calls(part)
            if not args.compile:
                calls = {way: call for way, call in calls.items() if "compiled" not in way}
            yield measured(part, size, calls, *head.cost(part), args)


def _wanted(name: str, chosen: list[str]) -> bool:
    return not chosen or any(part in name for part in chosen)


# what a row must reach over PyTorch's separate ops: part of a name, size, other way, factor
BARS = (
    ("overlap_add", "patch", "F.fold", 3.0),
    ("overlap_add", "10s", "F.fold", 3.0),
    ("unit", "patch", "torch", 2.0),
    ("unit", "10s", "torch", 1.2),
    ("unit", "60s", "torch", 1.2),
)


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar with the rows that it is about, and whether they reach it."""
    found = []
    for part, size, way, factor in BARS:
        for row in rows:
            if part in row["layer"] and row["size"] == size:
                got = row["faster"][way]["median"]
                what = f"{row['layer']} {size}: x {way}"
                found.append({"bar": what, "at_least": factor, "got": got, "met": got >= factor})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="", help="parts of names, by comma; all by default")
    parser.add_argument("--sizes", default="patch,10s,60s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile as one more way")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per row")
    parser.add_argument("--keep", type=Path, help="a folder to write the result to")
    parser.add_argument("--add", action="store_true", help="to what --keep holds already")
    args = parser.parse_args()
    args.layers = [part for part in args.layers.split(",") if part]
    args.sizes = args.sizes.split(",")
    args.lacking = []
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("bench_conv: no GPU here that PyTorch can use")
    unknown = set(args.sizes) - set(SIZES)
    if unknown:
        parser.error(f"--sizes must be among {', '.join(SIZES)}, got {', '.join(unknown)}")
    with torch.inference_mode():
        heads = head_rows(args) if args.device == "cpu" else ()
        rows = [*heads, *layer_rows(args)]
        if args.device == "cuda":
            read_gbs = ceilings("cuda", quick=True).read_gbs
            rows = [{**row, "read_share": row["gbs"] / read_gbs} for row in rows]
    if args.keep and args.add:
        earlier = reporting.kept(f"conv-{args.device}", args.keep)
        fresh = {(row["layer"], row["size"]) for row in rows}
        if earlier:
            old = [r for r in earlier["rows"] if (r["layer"], r["size"]) not in fresh]
            rows = old + rows
    cells = []
    for row in rows:
        ratio = row["faster"][row["best"]]
        cells.append(
            (
                row["layer"],
                row["size"],
                row["us"],
                row["gbs"],
                row["gflops"],
                ratio["median"],
                ratio["p10"],
                ratio["p90"],
                row["best"],
            )
        )
    print(reporting.table(HEAD, cells))
    held = bars(rows) if args.device == "cpu" else []
    for name in args.lacking:
        print(f"{name}: not measured, only the reference serves it here")
    for bar in held:
        print(f"{'met ' if bar['met'] else 'MISSED'} {bar['bar']} >= {bar['at_least']}: {bar['got']:.2f}")
    out = reporting.result(
        "conv",
        device=args.device,
        threads=torch.get_num_threads(),
        cache="warm",
        rows=rows,
        bars=held,
        lacking=args.lacking,
    )
    if args.keep:
        reporting.keep(f"conv-{args.device}", out, args.keep)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
