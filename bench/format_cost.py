"""What a format of the experts' weights costs in exactness: no time is measured.

The relative L2 error of `moe_mlp` at the real width (H 2048, I 1408, top 6), with Gaussian weights
quantised to each format, against the same in float32, by the formula in float32. Eight experts do:
the error does not depend on how many others there are. `python bench/format_cost.py --keep FOLDER`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import reporting
from mingcore import ops
from mingcore.testing.compare import relative_l2

FORMATS = ("bf16", "int8", "int8_dyn", "fp8")
SIZES = {"real": (2048, 1408), "tiny": (64, 48)}
EXPERTS, TOP, TOKENS = 8, 6, 16


def errors(size: str, seed: int) -> dict[str, float]:
    """format -> relative L2 error of the result."""
    H, width = SIZES[size]
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(EXPERTS, 2 * width, H, generator=generator) * H**-0.5
    down = torch.randn(EXPERTS, H, width, generator=generator) * width**-0.5
    x = torch.randn(TOKENS, H, generator=generator)
    weights, ids = ops.route_topk(torch.randn(TOKENS, EXPERTS, generator=generator), top_k=TOP)
    exact = ops.moe_mlp(x, (gate_up, down), weights, ids, backend="reference")
    found = {}
    for name in FORMATS:
        packed = ops.pack_experts(gate_up, down, format=name, backend="reference")
        got = ops.moe_mlp(x, packed, weights, ids, backend="reference")
        found[name] = relative_l2(got, exact)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="real")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the result goes")
    options = parser.parse_args(arguments)
    with torch.inference_mode():
        found = errors(options.size, seed=0)
    print(reporting.table(("format", "relative L2, %"), [(k, 100 * v) for k, v in found.items()]))
    content = reporting.result("format_cost", size=options.size, seed=0, relative_l2=found)
    if options.keep:
        print(f"kept in {reporting.keep(f'format_cost-{options.size}', content, options.keep)}")
    reporting.last_line(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
