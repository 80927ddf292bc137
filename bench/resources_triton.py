"""What Triton's kernels take when compiled: registers, shared memory, the matrix unit.

Needs no GPU, and minutes: every launch that the compile tests (tests/ops) know, for sm_80, sm_90
and sm_100. `python bench/resources_triton.py moe_mlp` prints one op's table, `all` takes all of
them; `--keep` writes it to bench/results/, as Markdown and, launch by launch, into
triton_resources.json, to which those tests hold what they compile; resources_kept.py says when that
is worse. `--lines FILES` takes what compile tests have printed. Times are not measured here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resources_kept

ROOT = Path(__file__).resolve().parents[1]

KEPT, RENEW = "triton_resources.json", "python bench/resources_triton.py {op} --keep"
SCENARIOS = "tests.ops.scenarios"  # what the compile tests let their workers do
RESULTS = ROOT / "bench" / "results"
HEAD = ("sm", "kernel", "types", "blocks", "registers", "shared bytes", "matrix unit")


@dataclass(frozen=True)
class Op:
    """Which test compiles its launches, what the report is called, and what the launches are."""

    module: str
    calls: tuple[dict[str, Any], ...]  # the arguments of its compile_all
    report: str
    title: str
    launches: str


OPS = {
    "moe_mlp": Op(
        "moe_triton",
        ({"everything": False}, {"everything": True}),
        "triton_moe_resources.md",
        "Resources of the Triton expert kernels",
        "the launches of one layer of the released model (E 64, K 6, H 2048, I 1408, shared 2816) "
        "for 1, 2, 17, 300, 640 and 4096 tokens. Blocks are M N K",
    ),
    "flow_sample": Op(
        "flow_triton",
        ({"mode": ""}, {"mode": "all"}),
        "triton_flow_resources.md",
        "Resources of the Triton flow sampler",
        "the launches of the released head (H 1024, W 4096, 16 heads) for 1 to 32 requests of 11 "
        "tokens, and of 37, with guidance. Blocks are M N K, the warps' shares of a step and the "
        "parts of K; of attention queries, keys and D",
    ),
    "audio": Op(
        "spectrum_triton",
        ({"mode": ""}, {"mode": "all"}),
        "triton_audio_resources.md",
        "Resources of Triton's overlap_add and spectrum_head",
        "the launches of the AudioVAE's head (H 896, window 1280, hop 320) for 1 and 32 streams of "
        "5 frames and one of 20 and 500. Blocks are, of spectrum, frames, rows of weights, K and "
        "the warps' shares; of overlap_add hops and columns; of inverse the same, depth and parts",
    ),
    "causal_conv": Op(
        "conv_triton",
        ({"mode": ""}, {"mode": "all"}),
        "triton_conv_resources.md",
        "Resources of Triton's convolutions and frame_embed",
        "the launches of 16 layers of VoxCPM's AudioVAE and VibeVoice's acoustic tokenizer for a "
        "streamed patch of 1 and of 32 requests and for ten seconds in one shot, and the "
        "AudioVAE's frames. Blocks are output rows, times and K of the dense kernel and of "
        "frame_embed, channels, times and a thread's outputs of the direct one, channels and "
        "width of the state's",
    ),
    "small": Op(
        "small_triton",
        ({"everything": True},),
        "triton_small_resources.md",
        "Resources of Triton's norms, RoPE, cache writes, decode attention and linear",
        "the launches of the released shapes for 1 and 5 tokens, of wide rows and of every width "
        "of head that has a tile, and linear for 1 to 100 rows. Blocks are M N K of linear, else "
        "rows, keys and D",
    ),
    "elementwise": Op(
        "elementwise_triton",
        ({},),
        "triton_elementwise_resources.md",
        "Resources of Triton's flow_step and silu_mul",
        "both in every type. Blocks are elements",
    ),
}


def compiled(op: Op) -> list[dict]:
    """What the compile test records of every launch, those of its fast form too."""
    with tempfile.TemporaryDirectory() as cache:
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
        environment = {**os.environ, "PYTHONPATH": paths, "TRITON_CACHE_DIR": cache}
        environment.pop("TRITON_INTERPRET", None)
        requests = [{"call": f"{SCENARIOS}.{op.module}:compile_all", "args": args} for args in op.calls]
        done = subprocess.run(
            [sys.executable, "-m", "tests.ops.runners.worker"],
            input="".join(json.dumps(request) + "\n" for request in requests),
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
            check=True,
        )
    return parsed(done.stdout)


def parsed(text: str) -> list[dict]:
    """Lines of JSON, of every launch the last."""
    lines = [line for line in map(json.loads, text.splitlines()) if line != {"end": True}]
    return list({(line["sm"], line["kernel"], line["launch"]): line for line in lines}.values())


def taken(line: Mapping[str, Any]) -> resources_kept.Taken:
    """What is compared with what was kept, of a line that a compile test prints."""
    types = " x ".join((name or "-").lstrip("*") for name in line["types"])
    blocks = " ".join("-" if n is None else str(n) for n in line["blocks"])
    name = f"sm_{line['sm']} {line['kernel']} {types}, blocks {blocks}, launch {line['launch']}"
    spilled = line["usage"]["STACK"] + line["usage"]["LOCAL"]
    return resources_kept.Taken(name, line["usage"]["REG"], line["shared"], spilled, tuple(line["products"]))


def faults(op: str, lines: Iterable[Mapping[str, Any]], *, exact: bool = False) -> list[str] | None:
    """What is worse than what was kept of an op; None where nothing is kept of this Triton.

    exact: whatever is other; but launches that a file kept in parts has not had yet are no fault.
    """
    content = resources_kept.read(KEPT).get(op, {"triton": None})
    lines = list(lines)
    if {line["triton"] for line in lines} != {content["triton"]}:
        return None
    kept = {each.name: each for each in map(taken, content["launches"])}
    if exact and not content["complete"]:
        lines = [line for line in lines if taken(line).name in kept]
    return resources_kept.faults(map(taken, lines), kept, RENEW.format(op=op), exact=exact)


def keep(op: str, binaries: Sequence[Mapping[str, Any]], complete: bool) -> None:
    """Writes an op's Markdown, and its part of KEPT. complete: these are all of its launches."""
    (RESULTS / OPS[op].report).write_text(text(op, binaries, complete))
    names = ("sm", "kernel", "launch", "types", "blocks", "usage", "shared", "products")
    launches = [{name: each[name] for name in names} for each in binaries]
    launches.sort(key=lambda each: (each["sm"], each["kernel"], taken(each).name))
    content = resources_kept.read(KEPT)
    content[op] = {"triton": binaries[0]["triton"], "complete": complete, "launches": launches}
    resources_kept.write(KEPT, dict(sorted(content.items())))


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


def text(name: str, binaries: Sequence[Mapping[str, Any]], complete: bool = True) -> str:
    """An op's Markdown."""
    op, so_far = OPS[name], ""
    if not complete:
        counts = Counter(each["sm"] for each in binaries)
        each = ", ".join(f"{n} for sm_{sm}" for sm, n in sorted(counts.items()))
        so_far = f"So far {each}; the others have not been compiled for this report. "
    clean = sum(each["usage"]["STACK"] == each["usage"]["LOCAL"] == 0 for each in binaries)
    lines = (HEAD, ["---"] * len(HEAD), *rows(binaries))
    return (
        f"# {op.title}\n\n"
        "Compiled, not run: their speed is **not measured**. "
        f"Triton {binaries[0]['triton']}, ptxas that it ships; made by "
        f"`{RENEW.format(op=name)}`, which compiles {op.launches}. "
        f"{clean} of {len(binaries)} binaries have no stack and no local memory. "
        f"{so_far}Per row the largest of its launches. Types are those of x and of the weights.\n\n"
        + "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op", choices=(*OPS, "all"))
    parser.add_argument("--keep", action="store_true", help="write the report")
    parser.add_argument("--lines", type=Path, nargs="+", help="of compile tests, instead of compiling")
    options = parser.parse_args()
    if options.op == "all" and options.lines:
        parser.error("--lines are of one op")
    worse = []
    for op in OPS if options.op == "all" else (options.op,):
        if options.lines:
            binaries = parsed("".join(path.read_text() for path in options.lines))
        else:
            binaries = compiled(OPS[op])
        print(text(op, binaries, complete=not options.lines), flush=True)
        if options.keep:
            keep(op, binaries, complete=not options.lines)
        else:
            worse += faults(op, binaries, exact=True) or []
    print("\n".join(worse))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
