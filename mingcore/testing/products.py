"""The rate of one large matrix product on the CPU by several implementations: the ceiling of operations.

`torch.mm` is not always the fastest implementation, and a ceiling that something exceeds is no ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import ops
from ..ops.gemm.cases import takes_prepacked
from .compare import relative_l2
from .timing import Spread, interleaved

KINDS = ("fp32", "bf16", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AGREE = {"fp32": 1e-5, "bf16": 2e-2, "int8": 5e-2}  # relative L2 between implementations of one product
Calls = dict[str, Callable[[], Any]]


def implementations(kind: str, n: int) -> Calls:
    """Implementations of x Wᵀ of n x n matrices, by name: "fp32", "bf16", or "int8" (int8_dyn and torch's own)."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, n, generator=generator) for _ in range(2))
    if kind == "int8":
        packed = ops.pack_linear(w, format="int8_dyn")
        a = (x * (127 / x.abs().amax(1, keepdim=True))).round().to(torch.int8)
        b = (w * (127 / w.abs().amax(1, keepdim=True))).round().to(torch.int8).t()
        return {"ours, int8_dyn": lambda: ops.linear(x, packed), "torch._int_mm": lambda: torch._int_mm(a, b)}
    x, w = x.to(DTYPES[kind]), w.to(DTYPES[kind])
    found = {"torch.mm": lambda: x @ w.t()}
    if takes_prepacked(w.dtype):
        ready = torch.ops.mkldnn._reorder_linear_weight(w, n)
        product = torch.ops.mkldnn._linear_pointwise
        found["oneDNN prepacked"] = lambda: product(x, ready, None, "none", [], "")
    ours = ops.pack_linear(w)
    found["ours"] = lambda: ops.linear(x, ours)
    return found


def products(n: int, budget_s: float, kinds: Sequence[str] = KINDS) -> dict[str, dict[str, dict[str, float]]]:
    """kind -> implementation -> 1e12 operations per second: the spread over its rounds, interleaved, and the best.

    Raises AssertionError where the implementations do not agree.
    """
    rates: dict[str, dict[str, dict[str, float]]] = {}
    for kind in kinds:
        calls = implementations(kind, n)
        results = {name: call() for name, call in calls.items()}
        if kind != "int8":  # torch's int8 product is of integers without scales
            first, *rest = results.items()
            for name, got in rest:
                error = relative_l2(got, first[1])
                if not error <= AGREE[kind]:
                    raise AssertionError(f"{kind}: {name} differs from {first[0]} by {error:.2e}")
        measured = interleaved(calls, rounds=9, sample_s=1e-3, budget_s=budget_s)
        rates[kind] = {
            name: {**Spread.of([2 * n**3 / s / 1e12 for s in times]).as_dict(), "best": 2 * n**3 / min(times) / 1e12}
            for name, times in measured.samples.items()
        }
    return rates


def fastest(rates: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Of one kind: the best rate (`tflops`) and the implementation that reached it (`way`)."""
    name, rate = max(rates.items(), key=lambda item: item[1]["best"])
    return {"tflops": rate["best"], "way": name}
