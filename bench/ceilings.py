"""The ceilings of this machine: a read, a copy, and one large matrix product per dtype.

A product's ceiling is its fastest implementation seen here: `torch.mm` is not always that one,
and a roofline with points above its roof says nothing. `python bench/ceilings.py` prints them,
`--keep FOLDER` writes ceilings-cpu.json there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import reporting
from mingcore.testing.products import products
from mingcore.testing.roofline import ceilings
from mingcore.testing.timing import threads

N = 1536


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
        (f"{n}³ {kind}", name, rate["best"], "TFLOP/s") for kind, rates in gemms.items() for name, rate in rates.items()
    ]
    print(reporting.table(("ceiling", "by", "best", "unit"), rows))
    if options.keep:
        print(f"kept in {reporting.keep('ceilings-cpu', content, options.keep)}")
    reporting.last_line(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
