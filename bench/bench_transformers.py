"""One mixture-of-experts layer of transformers, its experts implementations against ours.

A block of Qwen3-MoE (router and experts) with random weights in bfloat16, called as the model calls
it; experts are chosen by its router, others for every set of tokens, so that decoding reads weights
that no cache holds. Everything is checked before it is timed; all take turns. Ends with the targets
and one line of JSON. `python bench/bench_transformers.py --tokens 1,512`; with `--keep FOLDER --add` it
adds to what an earlier run of the same commit kept there.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reporting
from mingcore.integrations import transformers as kernels
from mingcore.ops._core.packing import FORMATS, QUANTISED
from mingcore.testing.compare import max_relative
from mingcore.testing.timing import Comparison, interleaved, rotate, threads

# E, K, H, I: those of Qwen3-30B-A3B, of Ling-lite and Ming-UniAudio, and something small
SIZES = {"qwen3": (128, 8, 2048, 768), "ling": (64, 6, 2048, 1408), "tiny": (8, 2, 64, 48)}
THEIRS = ("eager", "grouped_mm", "batched_mm")
LIMITS = {"mingcore": 4e-2, "mingcore_int8": 0.1, "mingcore_int8_dyn": 0.15}
GATHERED_BYTES = 3 << 30  # batched_mm copies the weights of every slot; not timed beyond
SETS = 6  # of tokens, in turns
DECODE = 16  # tokens, up to which the target of decoding holds
TARGET_DECODE, TARGET_PREFILL = 1.25, 1.0


def random_block(size: tuple[int, int, int, int]) -> nn.Module:
    """transformers' Qwen3MoeSparseMoeBlock in bfloat16."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    E, K, H, I = size
    config = Qwen3MoeConfig(hidden_size=H, moe_intermediate_size=I, num_experts=E, num_experts_per_tok=K)
    with torch.device("meta"):
        block = Qwen3MoeSparseMoeBlock(config)
    block = block.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
    numbers = torch.randn(4194301).to(torch.bfloat16)  # a prime: no two rows are alike
    for p in block.parameters():
        for piece in p.view(-1).split(len(numbers)):
            torch.mul(numbers[: len(piece)], p.shape[-1] ** -0.5, out=piece)
    return block.eval()


def using(block: nn.Module, implementation: str) -> nn.Module:
    """The same block, its weights shared, on another implementation."""
    shared = {id(p): p for p in block.parameters()}
    twin = copy.deepcopy(block, shared)
    twin.experts.config._experts_implementation = implementation
    return twin


def point(blocks: dict[str, nn.Module], tokens: int, rounds: int, budget_s: float) -> dict[str, Any]:
    """One number of tokens: microseconds of each, and the ratios to every implementation of transformers."""
    first = next(iter(blocks.values()))
    _, width, H = first.experts.gate_up_proj.shape
    sets = [
        torch.randn(1, tokens, H, generator=torch.Generator().manual_seed(i)).to(torch.bfloat16) for i in range(SETS)
    ]
    K = first.gate.top_k
    slot_bytes = 3 * H * (width // 2) * 2
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, block in blocks.items():
        if name == "batched_mm" and tokens * K * slot_bytes > GATHERED_BYTES:
            continue
        if name == "eager" and tokens > 64:
            continue  # a loop over all experts; what the others are checked against below
        calls[name] = rotate(block, [(x,) for x in sets])
    expected = blocks["eager"](sets[0])
    for name, block in blocks.items():
        if name in calls:
            error = max_relative(block(sets[0]), expected)
            if not error <= LIMITS.get(name, LIMITS["mingcore"]):
                raise AssertionError(f"T={tokens}: {name} differs from eager by {error:.2e}")
    measured = interleaved(calls, rounds=rounds, budget_s=budget_s, warmup=1)
    hit = sum(len(first.gate(x)[2].unique()) for x in sets) / len(sets)
    return {"tokens": tokens, "experts_hit": hit, **_times(measured, hit * slot_bytes)}


def _times(measured: Comparison, nbytes: float) -> dict[str, Any]:
    ours = [name for name in measured.samples if name.startswith("mingcore")]
    theirs = [name for name in measured.samples if name not in ours]
    return {
        "us": {n: _scaled(measured.time_s(n).scaled(1e6)) for n in measured.samples},
        "gbs_bf16": nbytes / measured.time_s("mingcore").median / 1e9,
        "speedup": {n: {other: _scaled(measured.speedup(n, over=other)) for other in theirs} for n in ours},
    }


def _scaled(spread) -> dict[str, float]:
    return {"median": spread.median, "p10": spread.low, "p90": spread.high}


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(target, measured, met) for each number of tokens, in the weights' own type."""
    found = []
    for row in rows:
        limit = TARGET_DECODE if row["tokens"] <= DECODE else TARGET_PREFILL
        for other, ratio in row["speedup"]["mingcore"].items():
            if other == "eager":
                continue
            met = "met" if ratio["median"] >= limit else "not met"
            target = f"T={row['tokens']}: >= {limit} x {other}"
            found.append((target, f"{ratio['median']:.2f}", met))
    return found


def show(content: dict[str, Any]) -> None:
    names = list(dict.fromkeys(n for row in content["rows"] for n in row["us"]))
    body = [
        (row["tokens"], *(row["us"].get(n, {}).get("median") for n in names), row["gbs_bf16"])
        for row in content["rows"]
    ]
    print(reporting.table(("tokens, µs", *names, "GB/s bf16"), body), end="\n\n")
    ratios = [
        (row["tokens"], name, *(row["speedup"][name].get(o, {}).get("median") for o in THEIRS))
        for row in content["rows"]
        for name in row["speedup"]
    ]
    print(reporting.table(("tokens", "ours", *(f"x {o}" for o in THEIRS)), ratios), end="\n\n")
    print(reporting.table(("target", "measured", ""), verdicts(content["rows"])))


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    import transformers

    kernels.register()
    rows = []
    with threads(options.threads) as count, torch.inference_mode():
        block = random_block(SIZES[options.size])
        ours = ["mingcore" if f == "bf16" else f"mingcore_{f}" for f in options.formats]
        blocks = {name: using(block, name) for name in (*THEIRS, *ours)}
        for T in options.tokens:
            rows.append(point(blocks, T, 3 if options.quick else 15, options.budget))
            print(f"T={T}: done", file=sys.stderr, flush=True)
    dims = dict(zip(("E", "K", "H", "I"), SIZES[options.size]))
    content = reporting.result(
        "transformers", size=options.size, dims=dims, threads=count, transformers=transformers.__version__, rows=rows
    )
    name = f"transformers-{options.size}-cpu"
    if options.add:
        before = reporting.kept(name, options.keep)
        same = ("size", "transformers")
        content = reporting.joined(before, content, ("tokens",), order=lambda row: row["tokens"], same=same)
    show(content)
    if options.keep:
        print(f"kept in {reporting.keep(name, content, options.keep)}")
    reporting.last_line(content)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    known = [f for f in (*FORMATS, *QUANTISED) if f in ("bf16", "int8", "int8_dyn")]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="qwen3")
    parser.add_argument("--tokens", type=reporting.counts, default=(1, 512))
    parser.add_argument(
        "--formats",
        type=lambda text: text.split(","),
        default=["bf16", "int8"],
        help=f"of {', '.join(known)}; bf16 is always among them",
    )
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per case")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="few rounds: does it all run")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--add", action="store_true", help="to what is kept there")
    options = parser.parse_args(arguments)
    if options.add and options.keep is None:
        parser.error("--add needs --keep FOLDER")
    unknown = set(options.formats) - set(known)
    if unknown:
        parser.error(f"--formats takes {', '.join(known)}, got {', '.join(sorted(unknown))}")
    options.formats = list(dict.fromkeys(("bf16", *options.formats)))
    return options


if __name__ == "__main__":
    sys.exit(main())
