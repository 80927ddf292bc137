"""What a patch must cost at least, stage by stage: bytes over the measured read, operations over
the measured rate of a large product, whichever is longer.

Bytes and operations are those of our ops (testing/cost.py), counted while a patch runs: every
weight that is used and every cache, once per use. They are held to memory's rate only where no
cache can keep them: what a whole patch touches is compared with the last level cache, and for what
a stage reads repeatedly (the sampler its weights at each step) what that stage touches.

Operations are held to the rate of the arithmetic that computes them: activations are float32 on a
CPU, so products with 16-bit weights and with weights-only int8 are float32's; `int8_dyn` is int8's.
`in_bf16` says what the floor would be if those with narrow weights ran at bfloat16's rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ops._core.layouts import tensors_in
from ..profiling.profiler import spent
from ..profiling.stages import watched_ops
from ..runtime.params import FlowParams
from ..testing.products import fastest, products
from ..testing.roofline import Ceilings, ceilings
from .lockstep import STAGES, Ours

PATCHES = 2  # counted; experts are chosen anew in each
CACHE_MULTIPLE = 2  # what is this many times the cache cannot be kept in it
N, BUDGET_S = 1536, 1.5  # of the products


@dataclass
class Work:
    """Of a stage, per patch: bytes moved, bytes touched at least once, and operations by the kind
    of product: "fp32", "bf16", "fp16" or "int8"."""

    nbytes: float = 0.0
    touched: float = 0.0
    flops: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Rates:
    """1e9 bytes per second and, by kind of product, 1e12 operations per second and the way."""

    read_gbs: float
    products: dict[str, dict[str, Any]]
    cache_bytes: int


def rates(device: torch.device, *, quick: bool = False) -> Rates:
    """Measured here and now: seconds on a CPU. quick: smaller buffers and products, for tests."""
    found: Ceilings = ceilings(device.type, quick=quick)
    if device.type == "cuda":
        by_kind = {k: {"tflops": v, "way": "torch.mm"} for k, v in found.gemm_tflops.items()}
    else:
        measured = products(192 if quick else N, 0.1 if quick else BUDGET_S)
        by_kind = {kind: fastest(by_way) for kind, by_way in measured.items()}
    return Rates(found.read_gbs, by_kind, found.cache_bytes)


@torch.inference_mode()
def work(model: Any, batch: int) -> dict[str, Work]:
    """What the stages of a patch of `batch` rows do, the mean of PATCHES, by STAGES."""
    counter = _Counter(model.llm.device.type)
    ours = Ours(model, batch, PATCHES + 2, graphs=False)
    ours.start()
    config = model.config
    shape = (FlowParams().steps + 1, batch, config.patch_frames, config.latent_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.llm.device)
    with watched_ops(counter):
        for _ in range(PATCHES):
            counter.at = 0
            ours.patch(noise, counter.next)
    return dict(zip(STAGES, counter.stages, strict=True))


class _Counter:
    """Adds up what ops do, stage by stage."""

    def __init__(self, device: str):
        self.device, self.at, self.stages = device, 0, [Work() for _ in STAGES]
        self._depth = 0

    def next(self) -> None:
        self.at += 1

    def stage(self, stage: str, name: str) -> Any:
        return nullcontext()

    def op(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        if self._depth:  # a part of another op
            return function(*args, **kwargs)
        self._depth += 1
        try:
            result = function(*args, **kwargs)
        finally:
            self._depth -= 1
        cost, named = spent(name, function, args, kwargs, result)
        given = sum(t.nbytes for t in tensors_in(named))
        stage = self.stages[self.at]
        stage.nbytes += cost.nbytes / PATCHES
        stage.touched += min(cost.nbytes, given) / PATCHES
        stage.flops[_kind(named, self.device)] += cost.flops / PATCHES
        return result


def _kind(named: Mapping[str, Any], device: str) -> str:
    """The kind of product that an op's weights are multiplied by."""
    formats = [value.format for value in named.values() if hasattr(value, "format")]
    if "int8_dyn" in formats:
        return "int8"
    if device == "cpu":
        return "fp32"
    floats = [t.dtype for t in tensors_in(named) if t.is_floating_point()]
    return "bf16" if torch.bfloat16 in floats else "fp16" if torch.float16 in floats else "fp32"


def floors(done: Mapping[str, Work], rates: Rates, ours: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The least ms of every stage and of their sum, how many times as much was measured (`ours`: a
    side of lockstep.compare), and what that is made of, JSON-ready."""
    touched = sum(work.touched for work in done.values())
    cold = touched > CACHE_MULTIPLE * rates.cache_bytes
    stages = {}
    for name, work in done.items():
        again = work.touched > CACHE_MULTIPLE * rates.cache_bytes
        nbytes = (work.nbytes if again else work.touched) if cold else 0.0
        by_bytes = nbytes / rates.read_gbs * 1e-6
        by_flops = _flops_ms(work, rates)
        least, measured = max(by_bytes, by_flops), ours["stages_ms"][name]["median"]
        stages[name] = {
            "nbytes": work.nbytes,
            "touched_bytes": work.touched,
            "from_memory_bytes": nbytes,
            "flops": dict(work.flops),
            "bytes_ms": by_bytes,
            "flops_ms": by_flops,
            "floor_ms": least,
            "bound": "bytes" if by_bytes >= by_flops else "operations",
            "times": measured / least if least else None,
        }
    whole, measured = sum(s["floor_ms"] for s in stages.values()), ours["patch_ms"]["median"]
    found = {
        "read_gbs": rates.read_gbs,
        "products": rates.products,
        "cache_bytes": rates.cache_bytes,
        "touched_bytes": touched,
        "cold": cold,
        "stages": stages,
        "patch_ms": whole,
        "times": measured / whole if whole else None,
    }
    if weights in ("bf16", "int8") and any("fp32" in work.flops for work in done.values()):
        least = sum(max(stages[name]["bytes_ms"], _flops_ms(work, rates, fp32="bf16")) for name, work in done.items())
        found["in_bf16"] = {"patch_ms": least, "times": measured / least if least else None}
    return found


def _flops_ms(work: Work, rates: Rates, fp32: str = "fp32") -> float:
    """Of kinds whose rate was measured. fp32: the kind that float32's products are held to."""
    kinds = {fp32 if kind == "fp32" else kind: flops for kind, flops in work.flops.items()}
    return sum(flops / rates.products[kind]["tflops"] * 1e-9 for kind, flops in kinds.items() if kind in rates.products)
