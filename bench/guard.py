"""The regression guard: a CPU kernel that became slower or wrong, on a busy two-core machine.

Two measures, each against what was kept for this machine class (guard.json in its results):

- **ratios**: CPU time of one thread (preemption by others does not count) of ours over that of
  its baseline in PyTorch, in turns in the same process, the least of each. A ratio
  LIMIT_RATIO times the kept one fails, when three runs in a row say so.
- **instructions**: what one call of every kernel of mingcore._cpu executes under valgrind, in avx2,
  which is all it has. The same on every run and whatever else the machine does, so
  LIMIT_INSTRUCTIONS is close. It sees extra work, not slower memory; kernels compiled by another
  gcc are not compared.

Each case is checked against the oracle before it is timed: a kernel that is wrong by one element is
no kernel. tests/testing/test_guard.py shows what is caught: a kernel slowed by 20 %, one wrong
element; test_resources.py, one spill. `python bench/guard.py` judges, `--keep` writes figures.

`--ci` (.ci/run) takes at most a minute: what CI_SECONDS do not suffice for is not judged. That is
no failure, nor is a machine of another class, of which nothing is kept. Nor are ratios there: a
class holds processors of several generations and clocks shared with strangers (a convolution that
takes 0.66 of PyTorch's time on one took 0.89 on another, three times in a row), so CI shows them
and convicts by instructions and by what is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

BEGAN = time.monotonic()

import torch
import torch.nn.functional as F

import instructions
import reporting
from measure import packed
from mingcore import ops
from mingcore.ops._core.cases import baselines, for_op
from mingcore.testing import machine
from mingcore.testing.compare import check_op
from mingcore.testing.timing import threads

LIMIT_RATIO = 1.10
LIMIT_INSTRUCTIONS = 1.02
ROUNDS, SAMPLE_S, TRIES = 60, 1e-3, 3
CI_SECONDS, CASE_SECONDS = 55.0, 5.0  # since BEGAN; kept free for a case
OUT_OF_TIME = "not judged: out of time"
SLOWER_IN_CI = "slower here: times do not convict in CI"
Call = Callable[[], Any]
Arguments = dict[str, Any]


def _linear(dtype: torch.dtype) -> tuple[Arguments, Call]:
    x, w = _random(64, 256).to(dtype), _random(256, 256).to(dtype)
    ready = torch.ops.mkldnn._reorder_linear_weight(w, 64)
    product = torch.ops.mkldnn._linear_pointwise
    return {"x": x, "weight": w}, lambda: product(x, ready, None, "none", [], "")


def _moe_mlp() -> tuple[Arguments, Call]:
    experts = (_random(8, 128, 128), _random(8, 128, 64))
    weights, ids = ops.route_topk(_random(32, 8), top_k=2)
    arguments = {"x": _random(32, 128), "experts": experts, "weights": weights, "ids": ids}
    return arguments, baselines("moe_mlp", arguments)["loop over the experts hit"]


def _attention() -> tuple[Arguments, Call]:
    arguments = next(c for c in for_op("attention_prefill") if c.name == "real_flow").make(seed=1)
    return arguments, baselines("attention_prefill", arguments)["SDPA"]


def _convolution() -> tuple[Arguments, Call]:
    x, w = _random(1, 64, 256), _random(64, 64, 7)
    padded = F.pad(x, (6, 0))
    return {"x": x, "weight": w}, lambda: F.conv1d(padded, w)


# name -> op, its arguments, and its baseline. Small: what fits in a core's own
# cache is as fast on a busy machine as on an idle one, between two turns of the others
CASES: dict[str, tuple[str, str, Callable[[], tuple[Arguments, Call]]]] = {
    "linear, fp32": ("linear", "oneDNN prepacked", lambda: _linear(torch.float32)),
    "linear, bf16": ("linear", "oneDNN prepacked", lambda: _linear(torch.bfloat16)),
    "moe_mlp, fp32": ("moe_mlp", "loop over the experts hit", _moe_mlp),
    "attention_prefill, fp32": ("attention_prefill", "SDPA", _attention),
    "causal_conv1d, fp32": ("causal_conv1d", "F.conv1d", _convolution),
}


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def calls(name: str) -> tuple[Call, Call]:
    """Ours and the baseline, on equal arguments; ours is right, or AssertionError says how not."""
    op, _, make = CASES[name]
    arguments, other = make()
    check_op(op, arguments)
    ready = packed(op, arguments)
    return lambda: getattr(ops, op)(**ready), other


def ratio(ours: Call, other: Call, rounds: int = ROUNDS, sample_s: float = SAMPLE_S) -> float:
    """CPU time of ours over that of the baseline, in turns, on one thread: of each the least,
    since others can only add to it."""
    with threads(1):
        pair = [(call, _repeats(call, sample_s)) for call in (ours, other)]
        took = [[_cpu_s(*each) for each in pair] for _ in range(rounds)]
    mine, theirs = (min(times) for times in zip(*took))
    return mine / theirs


def _repeats(call: Call, sample_s: float) -> int:
    once = min(_cpu_s(call, 5) for _ in range(5))
    # a multiple of five: what a test slows down is slow in every sample
    return 5 * max(1, round(sample_s / max(once, 1e-7) / 5))


def _cpu_s(call: Call, repeats: int) -> float:
    """Seconds of this thread's CPU time for one of `repeats` calls."""
    began = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - began) / repeats


def slower(kept: float, ours: Call, other: Call) -> tuple[bool, list[float]]:
    """Whether ours is slower than what was kept, and the ratios that were measured: up to TRIES,
    since a machine can be disturbed, and one that is not above the limit acquits."""
    seen = []
    for _ in range(TRIES):
        seen.append(ratio(ours, other))
        if seen[-1] <= LIMIT_RATIO * kept:
            return False, seen
    return True, seen


def measured(tries: int = TRIES) -> dict[str, dict[str, Any]]:
    """What is kept: the median of some runs' ratios by case, and the runs."""
    found = {}
    for name, (_, other, _) in CASES.items():
        runs = sorted(ratio(*calls(name)) for _ in range(tries))
        found[name] = {"other": other, "ratio": median(runs), "runs": runs}
    return found


def judge(kept: dict[str, Any], deadline: float = math.inf, slow: str = "SLOWER") -> list[tuple[str, str, str, str]]:
    """(what, found, kept, verdict) for every case and every kernel's instructions, until
    `deadline`, by time.monotonic. `slow`: the verdict on a ratio above its limit."""
    judged = []
    for name, (_, other, _) in CASES.items():
        before = kept["ratios"].get(name)
        if before is None or before["other"] != other:
            judged.append((name, "-", "-", "not kept"))
            continue
        if time.monotonic() > deadline - CASE_SECONDS:
            judged.append((name, "-", f"{before['ratio']:.3f}", OUT_OF_TIME))
            continue
        bad, seen = slower(before["ratio"], *calls(name))
        shown = f"{min(seen):.3f} of {other}"
        judged.append((name, shown, f"{before['ratio']:.3f}", slow if bad else "pass"))
    return judged + instructions.judge(kept["instructions"], LIMIT_INSTRUCTIONS, deadline)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="measure anew and write guard.json")
    parser.add_argument("--folder", type=Path, help="of guard.json; default: this machine's results")
    parser.add_argument("--ci", action="store_true", help=f"at most {CI_SECONDS:.0f} s")
    options = parser.parse_args(arguments)
    folder = options.folder or reporting.RESULTS / machine.slug()
    with torch.inference_mode():
        if options.keep:
            content = reporting.result(
                "guard",
                limits={"ratio": LIMIT_RATIO, "instructions": LIMIT_INSTRUCTIONS},
                ratios=measured(),
                instructions=instructions.counted() if instructions.available() else None,
            )
            print(f"kept in {reporting.keep('guard', content, folder)}")
            print(json.dumps(content["ratios"], indent=1))
            return 0
        kept = reporting.kept("guard", folder)
        if kept is None:
            print(f"guard: nothing is kept for this machine in {folder}: not judged (--keep)")
            return 0 if options.ci else 2
        in_ci = (BEGAN + CI_SECONDS, SLOWER_IN_CI)
        judged = judge(kept, *in_ci) if options.ci else judge(kept)
    print(reporting.table(("what", "found", "kept", "verdict"), judged))
    return 1 if any(verdict == "SLOWER" for *_, verdict in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
