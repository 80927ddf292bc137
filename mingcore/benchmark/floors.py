"""Floors: the minimum time of a patch, stage by stage: bytes over the measured read rate or operations over the
measured rate of a large product, whichever is longer.

Bytes and operations are those of our ops (their cases.py), counted while a patch runs: every weight and every cache
entry that is used, once per use. Bytes count only where no cache can hold them: the bytes that a patch touches are
compared with the last-level cache, and for what a stage reads repeatedly (the sampler its weights at each step) the
bytes that the stage touches.

Operations are held to the rate of the arithmetic that computes them: activations are float32 on a CPU, so products
with 16-bit weights and with weights-only int8 are float32's; `int8_dyn` is int8's. `in_bf16` is the floor if products
with narrow weights ran at bfloat16's rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ops._core.layouts import tensors_in
from ..profiling.profiler import call_cost
from ..profiling.stages import observed_ops
from ..runtime.params import FlowParams
from ..testing.products import fastest, products
from ..testing.roofline import Ceilings, ceilings
from .lockstep import STAGES, Ours

PATCHES = 2  # that are counted; each is routed to other experts
CACHE_MULTIPLE = 2  # more bytes than this many times the cache count as read from memory
N, BUDGET_S = 1536, 1.5  # size and seconds of the measured products


@dataclass
class Work:
    """Of a stage, per patch: bytes read and written with repetitions, distinct bytes touched, and operations by the
    kind of product: "fp32", "bf16", "fp16" or "int8"."""

    nbytes: float = 0.0
    touched: float = 0.0
    flops: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Rates:
    """Read rate in 1e9 bytes per second; by kind of product the rate in 1e12 operations per second (`tflops`) and the
    variant that reached it (`way`); bytes of the last-level cache."""

    read_gbs: float
    products: dict[str, dict[str, Any]]
    cache_bytes: int


def rates(device: torch.device, *, quick: bool = False) -> Rates:
    """Measures the rates; takes seconds on a CPU. quick: smaller buffers and products, for tests."""
    found: Ceilings = ceilings(device.type, quick=quick)
    if device.type == "cuda":
        by_kind = {k: {"tflops": v, "way": "torch.mm"} for k, v in found.gemm_tflops.items()}
    else:
        measured = products(192 if quick else N, 0.1 if quick else BUDGET_S)
        by_kind = {kind: fastest(variants) for kind, variants in measured.items()}
    return Rates(found.read_gbs, by_kind, found.cache_bytes)


@torch.inference_mode()
def work(model: Any, batch: int) -> dict[str, Work]:
    """The work of each stage of a patch of `batch` sequences, by STAGES: the mean of PATCHES."""
    counter = _Counter(model.llm.device.type)
    ours = Ours(model, batch, PATCHES + 2, graphs=False)
    ours.start()
    config = model.config
    shape = (FlowParams().steps + 1, batch, config.patch_frames, config.latent_dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.llm.device)
    with observed_ops(counter):
        for _ in range(PATCHES):
            counter.at = 0
            ours.patch(noise, counter.next)
    return dict(zip(STAGES, counter.stages, strict=True))


class _Counter:
    """Adds up the cost of ops, stage by stage."""

    def __init__(self, device: str):
        self.device, self.at, self.stages = device, 0, [Work() for _ in STAGES]
        self._depth = 0

    def next(self) -> None:
        self.at += 1

    def stage(self, stage: str, name: str) -> Any:
        return nullcontext()

    def op(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        if self._depth:  # called by another op
            return function(*args, **kwargs)
        self._depth += 1
        try:
            result = function(*args, **kwargs)
        finally:
            self._depth -= 1
        cost, named = call_cost(name, function, args, kwargs, result)
        given = sum(t.nbytes for t in tensors_in(named))
        stage = self.stages[self.at]
        stage.nbytes += cost.nbytes / PATCHES
        stage.touched += min(cost.nbytes, given) / PATCHES
        stage.flops[_kind(named, self.device)] += cost.flops / PATCHES
        return result


def _kind(named: Mapping[str, Any], device: str) -> str:
    """The kind of the op's matrix products."""
    formats = [value.format for value in named.values() if hasattr(value, "format")]
    if "int8_dyn" in formats:
        return "int8"
    if device == "cpu":
        return "fp32"
    floats = [t.dtype for t in tensors_in(named) if t.is_floating_point()]
    return "bf16" if torch.bfloat16 in floats else "fp16" if torch.float16 in floats else "fp32"


def floors(done: Mapping[str, Work], rates: Rates, ours: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """The floor in ms of every stage and of their sum, the ratio of the measured time to it (`ours`: a side of
    lockstep.compare), and the bytes and operations that it follows from, JSON-ready."""
    touched = sum(work.touched for work in done.values())
    cold = touched > CACHE_MULTIPLE * rates.cache_bytes
    stages = {}
    for name, work in done.items():
        rereads = work.touched > CACHE_MULTIPLE * rates.cache_bytes
        nbytes = (work.nbytes if rereads else work.touched) if cold else 0.0
        by_bytes = nbytes / rates.read_gbs * 1e-6
        by_flops = _flops_ms(work, rates)
        floor, measured = max(by_bytes, by_flops), ours["stages_ms"][name]["median"]
        stages[name] = {
            "nbytes": work.nbytes,
            "touched_bytes": work.touched,
            "from_memory_bytes": nbytes,
            "flops": dict(work.flops),
            "bytes_ms": by_bytes,
            "flops_ms": by_flops,
            "floor_ms": floor,
            "bound": "bytes" if by_bytes >= by_flops else "operations",
            "times": measured / floor if floor else None,
        }
    total, measured = sum(s["floor_ms"] for s in stages.values()), ours["patch_ms"]["median"]
    found = {
        "read_gbs": rates.read_gbs,
        "products": rates.products,
        "cache_bytes": rates.cache_bytes,
        "touched_bytes": touched,
        "cold": cold,
        "stages": stages,
        "patch_ms": total,
        "times": measured / total if total else None,
    }
    if weights in ("bf16", "int8") and any("fp32" in work.flops for work in done.values()):
        floor = sum(max(stages[name]["bytes_ms"], _flops_ms(work, rates, fp32="bf16")) for name, work in done.items())
        found["in_bf16"] = {"patch_ms": floor, "times": measured / floor if floor else None}
    return found


def _flops_ms(work: Work, rates: Rates, fp32: str = "fp32") -> float:
    """ms of the operations of kinds whose rate was measured. fp32: the kind at whose rate float32 products count."""
    kinds = {fp32 if kind == "fp32" else kind: flops for kind, flops in work.flops.items()}
    return sum(flops / rates.products[kind]["tflops"] * 1e-9 for kind, flops in kinds.items() if kind in rates.products)
