"""`make gpu`: build, prove and measure on a machine with a GPU, in at most eight minutes.

Needs Python, PyTorch with CUDA, nvcc and what pyproject.toml's `test` extra names; no network and
no installation. Each part runs in a process of its own with its own time limit; when one fails the
others still run; the last one is compute-sanitizer over small shapes, where there is one. Then come
the table and one line of JSON. At most four files are left in the folder named by OUT: report.txt,
gpu.json, verified.zip (records; unzip into mingcore/ops/verified/) and log.txt. Status 0: every
part ran, or could not be run here; 1: one failed; 2: there is no GPU. `--dry-run` walks through all
of it on a CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = (ROOT, ROOT / "kernels", ROOT / "bench")  # nothing is installed here
sys.path[:0] = map(str, IMPORTS)

import reporting
import targets

TOTAL_S = 475.0
E2E_S = 90.0
SANITIZER_S = 30.0
SKIPPED = 77  # a part's status where it cannot be run here; what it printed last says why
# the real shape in bf16, weights drawn on the GPU; what there is no time for it leaves out itself
REAL = [
    "ming-uniaudio-16b",
    "--dtype",
    "bf16",
    "--batches",
    "1,32,64,4,8,16",
    "--patches",
    "10",
    "--limit",
    str(E2E_S - 25),
]
LOG_BYTES = 4 << 20
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-c",
    os.devnull,
    "--rootdir",
    str(ROOT),
    "-p",
    "no:cacheprovider",
    "--import-mode=importlib",
    "-q",
]
VERIFY = """
import sys
from mingcore.ops import verify
results = verify.run(timeout_s=float(sys.argv[1]), progress=print)
print(len(results), "kernels")
sys.exit(any(not r.passed for r in results))
"""


@dataclass
class Part:
    """One thing to run: a command, how long it may take, and how it went."""

    name: str
    command: list[str]
    limit_s: float
    environment: dict[str, str] = field(default_factory=dict)
    ok_codes: tuple[int, ...] = (0,)
    status: str = "not run"
    seconds: float = 0.0
    output: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok" or self.skipped

    @property
    def skipped(self) -> bool:
        return self.status.startswith("skipped")

    def run(self, seconds_left: float, cache: Path) -> None:
        """Run it; a part that outlives its limit is stopped with everything it started.

        `cache` is where verified records go, and where later parts find them.
        """
        limit = min(self.limit_s, seconds_left)
        if limit < 5:
            self.status = "not run: no time left"
            return
        path = os.pathsep.join(map(str, IMPORTS))
        inherited = os.environ.get("PYTHONPATH")
        environment = {
            **os.environ,
            "PYTHONPATH": path + (os.pathsep + inherited if inherited else ""),
            "PYTHONUNBUFFERED": "1",
            "MINGCORE_CACHE": str(cache),
            **self.environment,
        }
        began = time.monotonic()
        process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            self.output, _ = process.communicate(timeout=limit)
            good = process.returncode in self.ok_codes
            self.status = "ok" if good else f"status {process.returncode}"
            if process.returncode == SKIPPED:
                self.status = f"skipped: {(self.output.splitlines() or [''])[-1]}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            self.output, _ = process.communicate()
            self.status = f"stopped after {limit:.0f} s"
        self.seconds = time.monotonic() - began

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "seconds": round(self.seconds, 1)}

    def last_json(self) -> dict[str, Any] | None:
        """The JSON line that the command printed last, if it did."""
        for line in reversed(self.output.splitlines()):
            if line.startswith('{"kind":'):
                try:
                    return json.loads(line)
                except json.JSONDecodeError:
                    return None
        return None


def parts(dry: bool) -> list[Part]:
    """What is run, in order. The limits add up to less than the total: all have their turn."""
    python, bench = sys.executable, str(ROOT / "bench")
    device = "cpu" if dry else "cuda"
    tests = [*PYTEST, "-m", "gpu and not slow", "--continue-on-collection-errors", *gpu_tests()]
    probes = [python, f"{bench}/probes.py"]
    ops = [*PYTEST, "-p", "no:timeout", f"{bench}/test_ops.py", "--benchmark-only"]
    ops += ["--benchmark-disable-gc", "--benchmark-columns=median"]
    moe, flow, conv = ([python, f"{bench}/run.py", "--sweep", kind] for kind in ("moe", "flow", "conv"))
    decoder = [python, f"{bench}/bench_decoder.py", "--graph", "--device", device]
    end_to_end = [python, f"{bench}/bench_e2e.py", "--no-save", "--device", device, "--size"]
    sanitizer = [python, f"{bench}/sanitize.py", "--device", device, "--seconds"]
    if dry:
        ops += ["-m", "not gpu", "--quick", "--size", "odd", "-k", "linear"]
        return [
            Part("build", [python, "-c", "import mingcore._cpu"], 60),
            Part("gpu tests", [*tests, "--collect-only"], 60, ok_codes=(0, 5)),
            Part("probes", [*probes, "--compile-only", "90a"], 60),
            Part("moe", [*moe, "--size", "tiny", "--tokens", "1,5", "--quick"], 60),
            Part("flow", [*flow, "--size", "tiny", "--batches", "1", "--tokens", "11", "--quick"], 60),
            Part("conv", [*conv, "--case", "mixer_32,out_32", "--lengths", "patch", "--budget", "0.05"], 60),
            Part("decoder", [*decoder, "--size", "tiny", "--quick", "--budget", "0.05"], 60),
            Part("ops", ops, 60),
            Part("end to end", [*end_to_end, "tiny", "--batches", "1,2", "--seconds", "0.3", "--patches", "2"], 60),
            Part("sanitizer", [*sanitizer, "40", "--kernels", "silu_mul:cpu,linear:cpu"], 60),
        ]
    build = [python, "setup.py", "-q", "build_ext", "--inplace"]
    ops += ["-m", "gpu", "--size", "real", "--budget", "0.15", "-k", "not moe_mlp"]
    flow += ["--device", "cuda", "--batches", "1,4,32", "--budget", "0.3"]
    moe += ["--device", "cuda", "--size", "real", "--budget", "0.1"]
    conv += ["--device", "cuda", "--budget", "0.1"]
    return [
        Part("build", build, 70, {"MINGCORE_CUDA": "1"}),
        Part("verify", [python, "-c", VERIFY, "65"], 70),
        Part("gpu tests", tests, 45, ok_codes=(0, 5)),
        Part("probes", probes, 20),
        Part("moe", moe, 50),
        Part("flow", flow, 30),
        Part("conv", conv, 25),
        Part("decoder", [*decoder, "--budget", "0.3"], 20),
        Part("ops", ops, 25),
        Part("end to end", [*end_to_end, *REAL], E2E_S),
        Part("sanitizer", [*sanitizer, str(SANITIZER_S - 3)], SANITIZER_S),
    ]


def gpu_tests() -> list[str]:
    """The test files that hold tests marked `gpu`: the others need not be imported there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(f) for f in files if "mark.gpu" in f.read_text()]


def has_gpu() -> str | None:
    """Why PyTorch cannot use a GPU here, or None."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported: {error}"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU"
    return None


def leave(folder: Path, records: Path, done: list[Part], content: dict[str, Any], report: str) -> list[Path]:
    """Write the files, the records of `records` as one archive among them; returns them."""
    log = "\n".join(f"===== {p.name}: {p.status}\n{p.output}" for p in done)
    texts = {"report.txt": report + "\n", "gpu.json": json.dumps(content, indent=1) + "\n", "log.txt": log[-LOG_BYTES:]}
    for name, text in texts.items():
        (folder / name).write_text(text)
    files = [folder / name for name in texts]
    found = sorted(records.glob("*.json"))
    if found:
        files.append(folder / "verified.zip")
        with zipfile.ZipFile(files[-1], "w", zipfile.ZIP_DEFLATED) as archive:
            for record in found:
                archive.write(record, record.name)
    return files


def summarise(done: list[Part], found: dict[str, dict[str, Any]], seconds: float) -> str:
    """The table: parts, then the targets of the design."""
    blocks = [
        reporting.table(("part", "result", "s"), [(p.name, p.status, round(p.seconds)) for p in done]),
        targets.table(targets.judge(found)),
        f"{seconds:.0f} s in all",
    ]
    return "\n\n".join(blocks)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny shapes")
    options = parser.parse_args(arguments)
    reason = None if options.dry_run else has_gpu()
    if reason:
        print(f"gpu: nothing to measure here: {reason} (--dry-run walks through it on a CPU)")
        return 2
    folder = Path(os.environ.get("OUT") or "out").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    done: list[Part] = []
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch, "cache")
        for part in parts(options.dry_run):
            part.run(TOTAL_S - (time.monotonic() - began), cache)
            print(f"{part.name}: {part.status} ({part.seconds:.0f} s)", flush=True)
            if not part.ok:
                print("\n".join(part.output.splitlines()[-15:]), flush=True)
            done.append(part)
            result = part.last_json()
            if result is not None:
                found[result["kind"]] = result
        seconds = time.monotonic() - began
        report = summarise(done, found, seconds)
        content = reporting.result(
            "gpu",
            dry_run=options.dry_run,
            seconds=round(seconds, 1),
            parts=[p.as_dict() for p in done],
            bars=[b.as_dict() for b in targets.judge(found)],
            results=found,
        )
        files = leave(folder, cache / "verified", done, content, report)
    for name in ("moe", "flow", "conv", "decoder", "ops", "end_to_end", "probes"):
        table = targets.table_of(name, found.get(name))
        if table:
            print(f"\n{table}")
    print(f"\n{report}\nleft in {folder}: {', '.join(f.name for f in files)}")
    short = {key: content[key] for key in ("kind", "dry_run", "seconds", "parts", "bars")}
    reporting.last_line(short)
    return 0 if all(part.ok for part in done) else 1


if __name__ == "__main__":
    sys.exit(main())
