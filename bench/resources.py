"""What the CUDA kernels take when compiled: registers, shared memory, spills, and what they issue.

Needs nvcc and no GPU. `python bench/resources.py` prints the table, `--keep` writes it to
bench/results/cuda_resources.md and cuda_resources.json, to which tests/ops/test_compiled.py holds
what it compiles (resources_kept.py says when that is worse); `--ops moe_decode` looks at some.
Times are not measured here.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import resources_kept
from mingcore.ops._core import launch
from mingcore.ops.conv import cuda_plan as cuda_conv_plan
from mingcore.ops.flow import cuda as cuda_flow
from mingcore.ops.moe import cuda as cuda_moe
from mingcore.ops.moe import cuda_prefill as cuda_moe_prefill
from mingcore.ops.spectrum import cuda as cuda_audio

ROOT = Path(__file__).resolve().parents[1]

OPS = sorted(path.stem for path in (ROOT / "csrc" / "cuda").glob("*/*.cu"))
REPORT = ROOT / "bench" / "results" / "cuda_resources.md"
KEPT, RENEW = "cuda_resources.json", "python bench/resources.py --keep"
HEAD = ("target", "kernel", "threads", "registers", "shared bytes", "products", "copies")
COPIES = {  # PTX to the column's words
    "cp.async.bulk.tensor": "tensor boxes",
    "cp.async.bulk.shared": "bulk",
    "cp.async.cg": "16 bytes",
    "ldmatrix": "ldmatrix",
    "stmatrix": "stmatrix",
}


@dataclass(frozen=True)
class Compiled:
    """One kernel of one target. spilled: bytes of stack, spill stores and spill loads together."""

    target: str
    name: str
    threads: int
    registers: int
    moved: tuple[int, ...]  # registers after setmaxnreg, of each kind of warp
    shared_bytes: int
    spilled: int
    local: bool
    products: str
    copies: str

    @property
    def taken(self) -> resources_kept.Taken:
        """What is compared with what was kept."""
        products = tuple(self.products.split(", "))
        sizes = (self.registers, self.shared_bytes, self.spilled, products)
        return resources_kept.Taken(f"{self.target} {self.name}", *sizes, self.local)

    def cells(self) -> tuple:
        registers = str(self.registers)
        if self.moved:
            registers += f"; then {' and '.join(map(str, self.moved))}"
        shared = self.shared_bytes
        return (self.target, self.name, self.threads, registers, shared, self.products, self.copies)


def targets(op: str) -> list[str]:
    """Where an op's kernels are compiled for, of the GPUs that matter here."""
    named = launch.architectures(op)
    generic = any(target.startswith("compute_") for target in named)
    return ["sm_80", "sm_90a", "sm_100"] if generic else [t for t in named if t.startswith("sm_")]


def compiled(op: str, target: str) -> list[Compiled]:
    """The kernels of an op, by nvcc with every warning an error; RuntimeError with what it says."""
    source = launch.source(op)
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-O3", "-std=c++17", "-cubin", f"-arch={target}", "-Xptxas", "-v"]
        command += ["-Werror", "all-warnings", "--keep", "--keep-dir", folder]
        command += [f"-I{launch.include_folder(source)}", "-o", f"{folder}/{op}.cubin", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        ptx = next(Path(folder).glob("*.ptx")).read_text()
    bodies = {part[: part.index("(")]: part for part in ptx.split(".visible .entry ")[1:]}
    output = re.split(r"Compiling entry function '(\w+)' for '\w+'", done.stderr)[1:]
    found = zip(output[::2], output[1::2])
    return sorted((_one(target, *pair, bodies[pair[0]]) for pair in found), key=lambda c: c.name)


def _one(target: str, name: str, output: str, ptx: str) -> Compiled:
    numbers = re.search(r"(\d+) bytes stack frame, (\d+) \D+ stores, (\d+) \D+ loads", output)
    static = re.search(r"(\d+) bytes smem", output)
    return Compiled(
        target,
        name,
        threads=int(re.search(r"\.maxntid (\d+)", ptx)[1]),
        registers=int(re.search(r"Used (\d+) registers", output)[1]),
        moved=tuple(sorted({int(n) for n in re.findall(r"setmaxnreg\S+ (\d+)", ptx)})),
        shared_bytes=(int(static[1]) if static else 0) + _dynamic(name, target),
        spilled=sum(map(int, numbers.groups())),
        local=".local" in ptx,
        products=_products(ptx),
        copies=", ".join(words for start, words in COPIES.items() if start in ptx) or "-",
    )


def _products(ptx: str) -> str:
    """Such as "wgmma m64n16..192k16 bf16" of a kernel's PTX."""
    shapes: dict[tuple[str, str, str, str], set[int]] = {}
    shape = r"(wgmma|mma)\.\S*?\.m(\d+)n(\d+)k(\d+)(?:\.row\.col)?\.[fs]32\.(\w+)"
    for unit, m, n, k, kind in re.findall(shape, ptx):
        shapes.setdefault((unit, m, k, kind), set()).add(int(n))
    found = []
    for (unit, m, k, kind), widths in sorted(shapes.items()):
        n = str(max(widths)) if len(widths) == 1 else f"{min(widths)}..{max(widths)}"
        found.append(f"{unit} m{m}n{n}k{k} {kind}")
    return ", ".join(found) or "-"


# layers whose shared memory is stated for causal_conv: a 1x1 over 10 s, a patch going up by 8, and
# a dilated depthwise layer
CONVS = {
    "many": cuda_conv_plan.Shape(1, 16000, 768, 768, 1, 1, 1, 1, 0, 0, 2, True, 1),
    "few": cuda_conv_plan.Shape(1, 32, 1536, 768, 1, 16, 1, 1, 8, 1, 2, False, 2),
    "depthwise": cuda_conv_plan.Shape(1, 1280, 1, 1, 192, 7, 1, 9, 0, 54, 2, True, 1),
}


def _dynamic(name: str, target: str) -> int:
    """Dynamic shared memory that the adapter asks for; flow_sample's is for a head 1024 wide, one
    patch of 5 frames of 64 channels, on 132 multiprocessors, causal_conv's for CONVS.
    """
    if name.startswith("causal_conv"):
        _, _, kind, dtype = name.split("_")
        if kind == "state":
            return 0
        shape = CONVS[kind]._replace(size=4, parts=1) if dtype == "float32" else CONVS[kind]
        limit = (163 if target == "sm_80" else 227) * 1024
        return cuda_conv_plan.plan(shape, 132, limit).shared_bytes
    if name.startswith("moe_decode"):
        return cuda_moe.shared_bytes(name.rsplit("_", 1)[1], target != "sm_80")
    if name == "moe_prefill_sort":
        return cuda_moe_prefill.SORT_BYTES
    if name.startswith(("moe_prefill_up", "moe_prefill_down")):
        return cuda_moe_prefill.SHARED_BYTES
    if name.startswith("overlap_add"):
        return cuda_audio.COPY_BYTES
    if name == "spectrum_inverse":
        return cuda_audio.SHARED_BYTES
    if name.startswith(("spectrum", "frame_embed")):
        kind = name.rsplit("_", 1)[1]
        tiles = kind in ("any", "many")
        return cuda_audio.EMBED_TILE[2] if tiles else cuda_audio.skinny_gemm_bytes(int(kind))
    if name.startswith("flow_sample"):
        _, _, format, tiles = name.split("_")
        sizes = (1024, 5 * 64, 132, int(tiles), format)
        return cuda_flow.shared_bytes(*sizes, cuda_flow.ring_pages(*sizes, 227 * 1024))
    return 0


def version() -> str | None:
    """nvcc's, such as "13.0", or None where there is none."""
    if shutil.which("nvcc") is None:
        return None
    output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release ([\d.]+)", output)[1]


def kept() -> dict[str, resources_kept.Taken]:
    """Name to what it took, of the kept file; nothing where another nvcc made it."""
    content = resources_kept.read(KEPT)
    if content.get("nvcc") != version():
        return {}
    rows = (row for rows in content["kernels"].values() for row in rows)
    taken = (Compiled(**{**row, "moved": tuple(row["moved"])}).taken for row in rows)
    return {each.name: each for each in taken}


def faults(kernels: Iterable[Compiled], *, exact: bool = False) -> list[str]:
    """What is worse than what was kept, or other where `exact`; resources_kept.py says when."""
    return resources_kept.faults((k.taken for k in kernels), kept(), RENEW, exact=exact)


def text(kernels: list[Compiled]) -> str:
    clean = sum(k.spilled == 0 and not k.local for k in kernels)
    return (
        "# Resources of the CUDA kernels\n\n"
        f"Compiled, not run: their speed is **not measured**. nvcc {version()}; made by "
        f"`{RENEW}`. {clean} of {len(kernels)} kernels have no stack, no "
        "spills and no local memory. Shared bytes are static and dynamic together. Where registers "
        "move between warps, the numbers after setmaxnreg follow.\n\n"
        + "".join(map(_line, (HEAD, ["---"] * len(HEAD), *(k.cells() for k in kernels))))
    )


def _line(cells: Iterable) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ops", type=lambda t: t.split(","), default=OPS)
    parser.add_argument("--keep", action="store_true", help=f"write {REPORT.relative_to(ROOT)}")
    options = parser.parse_args()
    if version() is None:
        print("resources: there is no nvcc here")
        return 2
    if options.keep and options.ops != OPS:
        parser.error("--keep takes all ops")
    made = {op: [k for target in targets(op) for k in compiled(op, target)] for op in options.ops}
    every = [kernel for kernels in made.values() for kernel in kernels]
    print(text(every))
    if options.keep:
        REPORT.write_text(text(every))
        rows = {op: [asdict(kernel) for kernel in kernels] for op, kernels in made.items()}
        resources_kept.write(KEPT, {"nvcc": version(), "kernels": rows})
        return 0
    lines = faults(every) if kept() else [f"not compared: nothing is kept of nvcc {version()}"]
    print("\n".join(lines))
    return 1 if lines and kept() else 0


if __name__ == "__main__":
    sys.exit(main())
