"""Propose rows for the table of `mingcore_kernels/gemm/configs.py`, on this machine's GPU.

    python bench/tune.py --kind 16 --out rows.txt

Times every valid tile of gate_up and down at the released model's shape, with as many tokens as
give each tile height its usual number of rows per expert, checks each against the tile in use, and
prints the fastest rows as they stand in the table, beside what they would replace. It changes
nothing: whoever commits a row has read it, and the tests of the kernels decide.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from mingcore import ops
from mingcore.ops._core.packing import quantise
from mingcore.testing import timing
from mingcore_kernels.gemm import configs, grouped_gemm
from mingcore_kernels.lib import target

E, K, H, I = 64, 6, 2048, 1408
TOKENS = {16: 8, 32: 256, 64: 512, 128: 4096}
MARGIN = 0.97  # a proposal has to be this much faster than what is in the table


def operands(product: str, kind: str, T: int) -> dict:
    """Arguments of `grouped_gemm.launch` at the released model's shape, without a config."""
    draw = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        dtype = torch.float32 if kind == "32" else torch.bfloat16
        return torch.randn(shape, generator=draw, device="cuda", dtype=dtype)

    S = T * K
    scores = torch.rand(T, E, generator=draw, device="cuda")
    ids = scores.argsort(dim=1)[:, :K].to(torch.int32)
    rows = offsets = None
    if T > 16:
        rows, offsets = ops.sort_by_expert(ids, E)
    x = normal(T, H) if product == "gate_up" else normal(S, I)
    w = normal(E, 2 * I, H) if product == "gate_up" else normal(E, H, I)
    out = x.new_empty(S, I if product == "gate_up" else H)
    given = {"slots": S, "top_k": K, "ids": ids, "rows": rows, "offsets": offsets}
    if kind in ("w8", "dyn"):
        w, given["scale"] = quantise(w, "int8")
    if kind == "dyn":
        x = x.mul(30).round_().clamp_(-127, 127).to(torch.int8)
        given["x_scale"] = torch.full((len(x),), 1 / 30, device="cuda")
    return {"product": product, "x": x, "w": w, "out": out, **given}


def fastest(product: str, kind: str, height: int, rounds: int) -> tuple[configs.Config, float]:
    """The best tile of one height and its speed-up over the table's; each is checked first."""
    given = operands(product, kind, TOKENS[height])
    capability = target.capability_of(torch.cuda.current_device())
    depth = given["w"].shape[2]
    in_use = configs.choose(product, kind, rows=height, depths=(depth,), capability=capability)
    grouped_gemm.launch(**given, config=in_use)
    expected = given["out"].clone()
    best, best_gain = in_use, 1.0
    for config in configs.candidates(product, kind, capability):
        if config.block_m != height or config == in_use:
            continue
        given["out"].fill_(float("nan"))
        grouped_gemm.launch(**given, config=config)
        error = (given["out"] - expected).abs().max() / expected.abs().max()
        if not error <= 0.02:
            print(f"{config}: differs by {error.item():.2e}: left out", file=sys.stderr)
            continue
        pair = {
            name: lambda used=used: grouped_gemm.launch(**given, config=used)
            for name, used in (("table", in_use), ("new", config))
        }
        gain = timing.graph_interleaved(pair, rounds=rounds).speedup("new", "table").median
        if gain > max(best_gain, 1 / MARGIN):
            best, best_gain = config, gain
    return best, best_gain


def line(kind: str, height: int, rounds: int) -> str:
    """One row of the table, with what it gains; the row in use where nothing is clearly faster."""
    entries, notes = [], []
    for product in ("gate_up", "down"):
        config, gain = fastest(product, kind, height, rounds)
        notes.append(f"{product} x{gain:.2f}" if gain > 1 else f"{product} as it was")
        entries.append((config.block_n, config.block_k, config.warps, config.stages))
    return f'    ("{kind}", {height}): {tuple(entries)},  # {", ".join(notes)}'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=configs.KINDS, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the proposal to this file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("tune: needs a GPU that PyTorch can use; found none", file=sys.stderr)
        return 2
    heights = {kind: [16, 32, 64] if kind == "32" else list(TOKENS) for kind in configs.KINDS}
    name = torch.cuda.get_device_name()
    proposal = [f"# {name}, torch {torch.__version__}"]
    print(proposal[0])
    for kind in options.kind or configs.KINDS:
        for height in heights[kind]:
            proposal.append(line(kind, height, options.rounds))
            print(proposal[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(proposal) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
