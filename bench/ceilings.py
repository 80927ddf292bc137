"""The ceilings of this machine: a read, a copy, and one large matrix product per dtype, each way.

A product's ceiling is the fastest way to it that was seen here: `torch.mm` is not always that one,
and a roofline with points above its roof says nothing. `python bench/ceilings.py` prints them,
`--keep FOLDER` writes ceilings-cpu.json there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench")]

import reporting  # noqa: E402

from mingcore import ops  # noqa: E402
from mingcore.testing.compare import relative_l2  # noqa: E402
from mingcore.testing.roofline import ceilings  # noqa: E402
from mingcore.testing.timing import Spread, interleaved, threads  # noqa: E402

N = 1536
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}  # relative L2, of ways of one product
Calls = dict[str, Callable[[], Any]]


def ways(kind: str, n: int) -> Calls:
    """The ways to x Wᵀ of n x n matrices: "fp32", "bf16", or "int8" (int8_dyn and torch's own)."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, n, generator=generator) for _ in range(2))
    if kind == "int8":
        packed = ops.pack_linear(w, format="int8_dyn")
        a = (x * (127 / x.abs().amax(1, keepdim=True))).round().to(torch.int8)
        b = (w * (127 / w.abs().amax(1, keepdim=True))).round().to(torch.int8).t()
        ours = lambda: ops.linear(x, packed)  # noqa: E731
        return {"ours, int8_dyn": ours, "torch._int_mm": lambda: torch._int_mm(a, b)}
    x, w = x.to(DTYPES[kind]), w.to(DTYPES[kind])
    found = {"torch.mm": lambda: x @ w.t()}
    if torch.backends.mkldnn.is_available():
        ready = torch.ops.mkldnn._reorder_linear_weight(w, n)
        product = torch.ops.mkldnn._linear_pointwise
        found["oneDNN prepacked"] = lambda: product(x, ready, None, "none", [], "")
    ours = ops.pack_linear(w)
    found["ours"] = lambda: ops.linear(x, ours)
    return found


def products(n: int, budget_s: float) -> dict[str, dict[str, dict[str, float]]]:
    """kind -> way -> 1e12 operations per second: the spread of its rounds, in turns."""
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for kind in ("fp32", "bf16", "int8"):
        calls = ways(kind, n)
        results = {name: call() for name, call in calls.items()}
        if kind != "int8":  # there, torch's is a product of integers without scales
            first, *rest = results.items()
            for name, got in rest:
                error = relative_l2(got, first[1])
                if not error <= AGREE[kind]:
                    raise AssertionError(f"{kind}: {name} differs from {first[0]} by {error:.2e}")
        measured = interleaved(calls, rounds=9, sample_s=1e-3, budget_s=budget_s)
        rates[kind] = {
            name: {
                **Spread.of([2 * n**3 / s / 1e12 for s in times]).as_dict(),
                "best": 2 * n**3 / min(times) / 1e12,
            }
            for name, times in measured.samples.items()
        }
    return rates


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per product")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="small ones: does it all run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the result goes")
    options = parser.parse_args(arguments)
    n = 192 if options.quick else N
    with torch.inference_mode(), threads(options.threads):
        found = ceilings("cpu", quick=options.quick).as_dict()
        gemms = products(n, options.budget)
    content = reporting.result("ceilings", device="cpu", n=n, ceilings={"cpu": found}, gemms=gemms)
    rows = [("read", "", found["read_gbs"], "GB/s"), ("copy", "", found["copy_gbs"], "GB/s")]
    rows += [
        (f"{n}³ {kind}", way, rate["best"], "TFLOP/s")
        for kind, by_way in gemms.items()
        for way, rate in by_way.items()
    ]
    print(reporting.table(("ceiling", "way", "best", "unit"), rows))
    if options.keep:
        print(f"kept in {reporting.keep('ceilings-cpu', content, options.keep)}")
    reporting.last_line(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
