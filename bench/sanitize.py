"""Our GPU kernels under compute-sanitizer, over small shapes: memcheck, then racecheck.

memcheck finds what is read or written out of bounds or misaligned, racecheck what threads of a
block write and read in shared memory without waiting. Each tool runs one process that calls every
kernel on its small cases, CUDA's first; a kernel that is not reached in the tool's share of
`--seconds` is listed as such. PyTorch's allocator hands out every tensor apart there, or a write
behind one would land in the next. Status 0: no errors; 1: errors; 77: nothing was run, and why.
The last line is JSON. `--run` is what happens below the tool.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import reporting

TOOLS = ("memcheck", "racecheck")
SKIPPED = 77
MOST_BYTES, MOST_CASES = 4 << 20, 6  # of a case's tensors; of a kernel's cases
MARK = "sanitized "
SUMMARY = re.compile(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)")


def tool() -> str | None:
    """compute-sanitizer, on the path or in a CUDA folder."""
    folders = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    path = os.pathsep.join([os.environ.get("PATH", ""), *(f"{f}/bin" for f in folders if f)])
    return shutil.which("compute-sanitizer", path=path)


def kernels() -> list[str]:
    """ "op:backend" of every GPU kernel, those in CUDA first."""
    from mingcore.ops._core.op import implementations

    found = {b: [e.op for e in implementations() if e.backend == b] for b in ("cuda", "triton")}
    return [f"{op}:{backend}" for backend, ops in found.items() for op in ops]


def checked(name: str, program: str, names: Sequence[str], device: str, limit_s: float) -> dict:
    """One tool's verdict: "errors" (None: it did not say), the kernels that ran, its last lines."""
    command = [program, "--tool", name, "--error-exitcode", "9", "--print-limit", "20"]
    command += [sys.executable, str(Path(__file__).resolve()), "--device", device, "--run", *names]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        start_new_session=True,
    )
    stopped = False
    try:
        output, _ = run.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        stopped = True
        os.killpg(run.pid, signal.SIGTERM)
        try:
            output, _ = run.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            output, _ = run.communicate()
    lines = output.splitlines()
    ran = [line.removeprefix(MARK).strip() for line in lines if line.startswith(MARK)]
    complaints = [line for line in lines if line.startswith("=========")]
    totals = [int(total) for total in SUMMARY.findall(output)]
    # stopped early, it gives no sum: an error's own lines are what there is
    errors = totals[-1] if totals else sum("Invalid" in c or "hazard" in c for c in complaints)
    broke = not stopped and run.returncode not in (0, 9)
    return {
        "tool": name,
        "errors": errors,
        "ran": ran,
        "stopped": stopped,
        "failed": f"status {run.returncode}: {lines[-1] if lines else ''}" if broke else None,
        "said": complaints[:40] if errors else [],
    }


def run(names: Sequence[str], device: str) -> None:
    """Below the tool: every kernel on its small cases, by name when it is done."""
    import torch

    from mingcore.errors import BackendError
    from mingcore.ops._core import cases
    from mingcore.ops._core.layouts import tensors_in
    from mingcore.testing import compare

    for name in names:
        op, backend = name.split(":")
        done = 0
        for case in cases.for_op(op):
            for dtype in (torch.bfloat16, torch.float32):
                arguments = case.make(device, dtype, seed=1)
                if sum(t.nbytes for t in tensors_in(arguments)) > MOST_BYTES or done >= MOST_CASES:
                    continue
                try:
                    compare.run(op, arguments, backend=backend)
                except BackendError:  # it does not serve this case
                    continue
                if device == "cuda":
                    torch.cuda.synchronize()
                done += 1
        print(f"{MARK}{name} {done}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of all tools together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels", help="such as moe_mlp:cuda,linear:triton; default: all")
    parser.add_argument("--run", nargs="+", metavar="KERNEL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        run(options.run, options.device)
        return 0
    program = tool()
    if program is None:
        print("sanitizer: not run: no compute-sanitizer here")
        return SKIPPED
    names = options.kernels.split(",") if options.kernels else kernels()
    share = options.seconds / len(TOOLS) - 3
    found = [checked(name, program, names, options.device, share) for name in TOOLS]
    rows: list[tuple[Any, ...]] = []
    for each in found:
        state = each["failed"] or (each["errors"] and "errors") or "clean"
        short = len(each["ran"]) < len(names)
        rows.append(
            (
                each["tool"],
                f"{len(each['ran'])} of {len(names)}",
                each["errors"],
                state + " as far as it came" * (short and state == "clean"),
            )
        )
        print("\n".join(each["said"]))
    print(reporting.table(("tool", "kernels", "errors", "verdict"), rows))
    reporting.last_line(reporting.result("sanitizer", kernels=names, tools=found))
    if not any(each["ran"] or each["errors"] for each in found):
        return SKIPPED if all(each["failed"] is None for each in found) else 1
    return 1 if any(each["errors"] or each["failed"] for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
