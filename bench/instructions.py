"""Instructions that one call of a CPU kernel executes, counted by valgrind: no clock, no noise.

The kernels are called through mingcore._cpu alone, without PyTorch, which valgrind takes minutes to
load. A count is the difference between runs of few calls and of more, so what starts Python is not
in it. valgrind has no AVX-512: what is counted is the avx2 build. `python bench/instructions.py`
prints the counts; guard.py holds them to those that were kept.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FEW, MORE = 5, 15
FLOAT, INT64 = 0, 6  # mingcore._cpu's codes


def native() -> Any:
    """mingcore._cpu from its file, without the package around it."""
    path = next((ROOT / "mingcore").glob("_cpu*.so"))
    spec = importlib.util.spec_from_file_location("_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def array(*shape: int, positions: int | None = None) -> tuple:
    """Memory of a shape as mingcore._cpu takes it, never freed: float32 in (-1, 1), none of them
    zero, or int64 that all are `positions`."""
    count, strides = 1, []
    for n in reversed(shape):
        strides.insert(0, count)
        count *= n
    if positions is not None:
        memory = (ctypes.c_int64 * count)(*[positions] * count)
    else:
        pattern = bytes((ctypes.c_float * 1009)(*((i - 504.5) / 505 for i in range(1009))))
        repeated = pattern * (4 * count // len(pattern) + 1)
        memory = (ctypes.c_float * count).from_buffer_copy(repeated[: 4 * count])
    _KEPT.append(memory)
    code = FLOAT if positions is None else INT64
    return ctypes.addressof(memory), code, tuple(shape), tuple(strides)


_KEPT: list[Any] = []


def _linear(cpu: Any) -> Callable[[], Any]:
    given = (array(4, 256), array(512, 256), None, None, None, array(4, 512))
    return lambda: cpu.linear(*given, "none", "rows", 512, 1)


def _linear_packed(cpu: Any) -> Callable[[], Any]:
    given = (array(16, 256), array(16, 256, 32), None, None, None, array(16, 512))
    return lambda: cpu.linear(*given, "gelu", "panels", 512, 1)


def _silu_mul(cpu: Any) -> Callable[[], Any]:
    given = (array(64, 2048), array(64, 1024))
    return lambda: cpu.silu_mul(*given, 1)


def _rms_norm(cpu: Any) -> Callable[[], Any]:
    given = (array(64, 1024), None, array(1024), 1e-6, array(64, 1024), None)
    return lambda: cpu.rms_norm(*given, 1)


def _attention_decode(cpu: Any) -> Callable[[], Any]:
    q, caches = array(1, 1, 8, 64), (array(1, 256, 2, 64), array(1, 256, 2, 64))
    given = (q, *caches, array(1, 1, positions=255), 0, 0.125, None, None, array(1, 1, 8, 64))
    return lambda: cpu.attention_decode(*given, 1)


KERNELS = {
    "linear": _linear,
    "linear, packed": _linear_packed,
    "silu_mul": _silu_mul,
    "rms_norm": _rms_norm,
    "attention_decode": _attention_decode,
}


def available() -> bool:
    return shutil.which("valgrind") is not None


def counted(
    names: Sequence[str] = tuple(KERNELS), repeat_every: int = 0, deadline: float = math.inf
) -> dict[str, Any]:
    """Instructions of one call of each kernel, with what they depend on. `repeat_every`: so many
    calls are followed by one more that is not counted as a call, as if the kernel did more work.
    Kernels that cannot be counted until `deadline`, by time.monotonic, are left out."""
    calls = dict.fromkeys(names, FEW)
    found: dict[str, int] = {}
    try:
        least = _executed(calls, repeat_every, deadline)
        for name in names:
            more = _executed({**calls, name: MORE}, repeat_every, deadline)
            found[name] = round((more - least) / (MORE - FEW))
    except subprocess.TimeoutExpired:
        pass  # what is left out is said to be not judged
    return {"compiler": compiler(), "isa": "avx2", "per_call": found}


def compiler() -> str:
    """Which gcc made mingcore._cpu, as its comment section says."""
    binary = next((ROOT / "mingcore").glob("_cpu*.so")).read_bytes()
    said = re.findall(rb"GCC: \([^)]*\) ([\d.]+)", binary)
    return f"gcc {said[0].decode()}" if said else "unknown"


def judge(
    kept: dict[str, Any] | None, limit: float, deadline: float = math.inf
) -> list[tuple[str, str, str, str]]:
    """(what, found, kept, verdict) of every kernel that was counted before."""
    if kept is None or not available():
        return [("instructions", "-", "-", "not counted: no valgrind here, or nothing kept")]
    if kept["compiler"] != compiler():
        return [("instructions", compiler(), kept["compiler"], "not compared: another compiler")]
    now = counted(tuple(kept["per_call"]), deadline=deadline)["per_call"]
    judged = []
    for name, before in kept["per_call"].items():
        what, count = f"{name}, instructions", now.get(name)
        if count is None:
            judged.append((what, "-", f"{before:,}", "not judged: out of time"))
        else:
            verdict = "SLOWER" if count > limit * before else "pass"
            judged.append((what, f"{count:,}", f"{before:,}", verdict))
    return judged


def _executed(calls: dict[str, int], repeat_every: int, deadline: float = math.inf) -> int:
    """Instructions of a whole process that calls each kernel so often; TimeoutExpired behind the
    deadline."""
    left = None if deadline == math.inf else max(deadline - time.monotonic(), 1e-3)
    asked = [f"{name}={count}" for name, count in calls.items()]
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, "-S", "-s", str(Path(__file__).resolve())]
        done = subprocess.run(
            [*command, "--run", str(repeat_every), *asked], capture_output=True, text=True,
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            timeout=left,
        )  # fmt: skip
    total = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not total:
        raise RuntimeError(f"instructions: {done.stderr[-1000:]}")
    return int(total[1])


def _run(repeat_every: int, asked: Sequence[str]) -> None:
    """Below valgrind: call the kernels."""
    cpu = native()
    for each in asked:
        name, count = each.split("=")
        call = KERNELS[name](cpu)
        for i in range(int(count)):
            call()
            if repeat_every and i % repeat_every == 0:
                call()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        _run(int(sys.argv[2]), sys.argv[3:])
    else:
        print(counted())
