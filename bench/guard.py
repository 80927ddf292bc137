"""The regression guard: a CPU kernel that became slower or wrong, on a busy two-core machine.

Two measures, each against what was kept for this machine class (guard.json in its results):

- **ratios**: CPU time of one thread (preemption by others does not count) of ours over that of
  an ordinary PyTorch way to the same, in turns in the same process, the median of the rounds'
  ratios. A ratio LIMIT_RATIO times the kept one fails, when three runs in a row say so.
- **instructions**: what one call of a kernel executes under valgrind, in avx2, which is all it has.
  The same on every run and whatever else the machine does, so LIMIT_INSTRUCTIONS is close. It sees
  extra work, not slower memory; a kernel compiled by another gcc is not compared.

Each case is checked against the oracle before it is timed: a kernel that is wrong by one element is
no kernel. tests/testing/test_guard.py shows what is caught: a kernel slowed by 20 %, one wrong
element, one spill (bench/resources.py). `python bench/guard.py` judges, `--keep` writes figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "bench")]

import instructions  # noqa: E402
import reporting  # noqa: E402
from candidates import candidates  # noqa: E402

from mingcore.testing import machine  # noqa: E402
from mingcore.testing.cases import for_op  # noqa: E402
from mingcore.testing.compare import check_op  # noqa: E402
from mingcore.testing.timing import Spread, threads  # noqa: E402

LIMIT_RATIO = 1.10
LIMIT_INSTRUCTIONS = 1.02
ROUNDS, SAMPLE_S, TRIES = 21, 8e-3, 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# op, case, dtype, and the other way it is held to: calls long enough that Python's part is small
RATIOS = (
    ("linear", "mid_qkv_t1", "bf16", "oneDNN prepacked"),
    ("linear", "mid_semantic_up", "fp32", "oneDNN prepacked"),
    ("moe_mlp", "mid_t8", "bf16", "loop over the experts hit"),
    ("attention_prefill", "real_flow", "fp32", None),
    ("causal_conv1d", "real_vox_residual", "fp32", None),
    ("spectrum_head", "real_middle", "fp32", None),
)
Call = Callable[[], Any]


def calls(op: str, case: str, dtype: str, other: str | None) -> tuple[str, Call, Call]:
    """The other way's name, ours and the other way, on equal arguments; ours is right."""
    found = next(c for c in for_op(op) if c.name == case)
    arguments = found.make("cpu", DTYPES[dtype], seed=1)
    check_op(op, arguments)
    ways = candidates(op, arguments)
    other = other or next(name for name in ways if name != "ours")
    return other, ways["ours"], ways[other]


def ratio(ours: Call, other: Call, rounds: int = ROUNDS, sample_s: float = SAMPLE_S) -> Spread:
    """CPU time of ours over that of the other way, in turns, on one thread."""
    with threads(1):
        repeats = [_repeats(call, sample_s) for call in (ours, other)]
        ratios = []
        for i in range(rounds):
            pair = [(ours, repeats[0]), (other, repeats[1])]
            took = [_cpu_s(*each) for each in (pair[::-1] if i % 2 else pair)]
            mine, theirs = took[::-1] if i % 2 else took
            ratios.append(mine / theirs)
    return Spread.of(ratios)


def _repeats(call: Call, sample_s: float) -> int:
    _cpu_s(call, 2)
    # a multiple of five: what a test slows down is slow in every sample
    return 5 * max(1, round(sample_s / max(_cpu_s(call, 3), 1e-7) / 5))


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
        seen.append(ratio(ours, other).median)
        if seen[-1] <= LIMIT_RATIO * kept:
            return False, seen
    return True, seen


def measured(tries: int = TRIES) -> dict[str, dict[str, Any]]:
    """What is kept: id -> the other way and the median of some runs' ratios, with their range."""
    found = {}
    for op, case, dtype, wanted in RATIOS:
        other, ours, theirs = calls(op, case, dtype, wanted)
        runs = sorted(ratio(ours, theirs).median for _ in range(tries))
        found[f"{op} {case} {dtype}"] = {"other": other, "ratio": median(runs), "runs": runs}
    return found


def judge(kept: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(what, found, kept, verdict) for everything that was kept."""
    judged = []
    for op, case, dtype, wanted in RATIOS:
        name = f"{op} {case} {dtype}"
        before = kept["ratios"].get(name)
        other, ours, theirs = calls(op, case, dtype, wanted)
        if before is None or before["other"] != other:
            judged.append((name, "-", "-", "not kept"))
            continue
        bad, seen = slower(before["ratio"], ours, theirs)
        shown = f"{min(seen):.3f} of {other}"
        judged.append((name, shown, f"{before['ratio']:.3f}", "SLOWER" if bad else "pass"))
    return judged + instructions.judge(kept["instructions"], LIMIT_INSTRUCTIONS)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="measure anew and write guard.json")
    parser.add_argument(
        "--folder", type=Path, help="of guard.json; default: this machine's results"
    )
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
            return 2
        judged = judge(kept)
    print(reporting.table(("what", "found", "kept", "verdict"), judged))
    return 1 if any(verdict == "SLOWER" for *_, verdict in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
