"""What Triton's kernels take when compiled: registers, shared memory, the matrix unit.

Needs no GPU, and some minutes. `python bench/resources_triton.py moe_mlp` (or flow_sample, audio)
prints the table, `--keep` writes it to bench/results/; `--lines FILE` takes what a compile test has
printed before. Times are not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tests" / "native"
RESULTS = ROOT / "bench" / "results"
HEAD = ("sm", "kernel", "types", "blocks", "registers", "shared bytes", "matrix unit")


@dataclass(frozen=True)
class Op:
    """Which test compiles its launches, what the report is called, and what the launches are."""

    script: str
    report: str
    title: str
    launches: str


OPS = {
    "moe_mlp": Op(
        "run_triton_moe.py",
        "triton_moe_resources.md",
        "Resources of the Triton expert kernels",
        "the launches of one layer of the released model (E 64, K 6, H 2048, I 1408, shared 2816) "
        "for 1, 2, 17, 300, 640 and 4096 tokens. Blocks are M N K",
    ),
    "flow_sample": Op(
        "run_triton_flow.py",
        "triton_flow_resources.md",
        "Resources of the Triton flow sampler",
        "the launches of the released head (H 1024, W 4096, 16 heads) for 1 to 32 requests of 11 "
        "tokens, and of 37, with guidance. Blocks are M N K, the warps' shares of a step and the "
        "parts of K; of attention queries, keys and D",
    ),
    "audio": Op(
        "run_triton_audio.py",
        "triton_audio_resources.md",
        "Resources of Triton's overlap_add and spectrum_head",
        "the launches of the AudioVAE's head (H 896, window 1280, hop 320) for 1 and 32 streams of "
        "5 frames and one of 20 and 500. Blocks are, of spectrum, frames, rows of weights, K and "
        "the warps' shares; of overlap_add hops and columns; of inverse the same, depth and parts",
    ),
    "causal_conv": Op(
        "run_triton_conv.py",
        "triton_conv_resources.md",
        "Resources of Triton's convolutions and frame_embed",
        "the launches of 16 layers of VoxCPM's AudioVAE and VibeVoice's acoustic tokenizer for a "
        "streamed patch of 1 and of 32 requests and for ten seconds in one shot, and the "
        "AudioVAE's frames. Blocks are output rows, times and K of the dense kernel and of "
        "frame_embed, channels, times and a thread's outputs of the direct one, channels and "
        "width of the state's",
    ),
}


def compiled(op: Op) -> list[dict]:
    """What the compile test records of every launch."""
    with tempfile.TemporaryDirectory() as cache:
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", SCRIPTS)))
        environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": cache}
        environment.pop("TRITON_INTERPRET", None)
        command = [sys.executable, str(SCRIPTS / op.script), "compile", "all"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return parsed(done.stdout)


def parsed(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


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


def text(op: Op, name: str, binaries: list[dict]) -> str:
    clean = sum(each["usage"]["STACK"] == each["usage"]["LOCAL"] == 0 for each in binaries)
    lines = (HEAD, ["---"] * len(HEAD), *rows(binaries))
    return (
        f"# {op.title}\n\n"
        "Compiled, not run: their speed is **not measured**. "
        f"Triton {binaries[0]['triton']}, ptxas that it ships; made by "
        f"`python bench/resources_triton.py {name} --keep`, which compiles {op.launches}. "
        f"{clean} of {len(binaries)} binaries have no stack and no local memory. Per row the "
        "largest of its launches. Types are those of x and of the weights.\n\n"
        + "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--keep", action="store_true", help="write the report")
    parser.add_argument("--lines", type=Path, help="lines of a compile test instead of compiling")
    options = parser.parse_args()
    op = OPS[options.op]
    binaries = parsed(options.lines.read_text()) if options.lines else compiled(op)
    made = text(op, options.op, binaries)
    print(made)
    if options.keep:
        (RESULTS / op.report).write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
