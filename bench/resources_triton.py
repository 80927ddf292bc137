"""What the Triton expert kernels take when compiled: registers, shared memory, the matrix unit.

Needs no GPU, and some minutes. `python bench/resources_triton.py` prints the table, `--keep` writes
it to bench/results/triton_moe_resources.md. Times are not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "native" / "run_triton_moe.py"
REPORT = ROOT / "bench" / "results" / "triton_moe_resources.md"
HEAD = ("sm", "kernel", "types", "blocks", "registers", "shared bytes", "matrix unit")


def compiled() -> list[dict]:
    """What the compile test records of every launch of one layer of the released model."""
    with tempfile.TemporaryDirectory() as cache:
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", SCRIPT.parent)))
        environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": cache}
        environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, str(SCRIPT), "compile", "all"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows(binaries: list[dict]) -> list[tuple]:
    """One per target, kernel, types and blocks: the largest of its launches."""
    found: dict[tuple, tuple[int, int, str]] = {}
    for each in binaries:
        types = " x ".join((name or "-").lstrip("*") for name in each["types"])
        blocks = " ".join("-" if n is None else str(n) for n in each["blocks"])
        name = each["kernel"].removeprefix("_").removesuffix("_kernel")
        key = each["sm"], name, types, blocks
        registers, shared, unit = found.get(key, (0, 0, "-"))
        usage = each["usage"]["REG"], each["shared"]
        unit = each["matrix"] or unit
        found[key] = max(registers, usage[0]), max(shared, usage[1]), unit
    return [key + value for key, value in sorted(found.items())]


def text(binaries: list[dict]) -> str:
    clean = sum(each["usage"]["STACK"] == each["usage"]["LOCAL"] == 0 for each in binaries)
    lines = (HEAD, ["---"] * len(HEAD), *rows(binaries))
    return (
        "# Resources of the Triton expert kernels\n\n"
        "Compiled, not run: their speed is **not measured**. "
        f"Triton {binaries[0]['triton']}, ptxas that it ships; made by "
        "`python bench/resources_triton.py --keep`, which compiles the launches of one layer of "
        "the released model (E 64, K 6, H 2048, I 1408, shared 2816) for 1, 2, 17, 300, 640 and "
        f"4096 tokens. {clean} of {len(binaries)} binaries have no stack and no local memory. Per "
        "row the largest of its launches. Types are those of x and of the weights, blocks are "
        "M N K.\n\n" + "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help=f"write {REPORT.relative_to(ROOT)}")
    options = parser.parse_args()
    made = text(compiled())
    print(made)
    if options.keep:
        REPORT.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
