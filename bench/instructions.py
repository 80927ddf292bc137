"""Instructions that one call of a CPU kernel executes, counted by valgrind: no clock, no noise.

The kernels are called through mingcore._cpu alone (instruction_calls.py), without PyTorch, which
valgrind takes minutes to load. One process under valgrind calls every kernel once and then forks:
a child calls one kernel CALLS times, one child calls none, and the difference between the two is
that kernel's; so Python starts once, and the children share the cores. Only what runs below the
module's bindings is counted, nothing of Python: the same number every time. valgrind has no
AVX-512: what is counted is the avx2 build. `python bench/instructions.py` prints the counts;
guard.py holds them to those that were kept.
"""

from __future__ import annotations

import gc
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruction_calls import KERNELS, native

ROOT = Path(__file__).resolve().parents[1]
CALLS = 10
BINDING = "pybind11::cpp_function::dispatcher*"  # what is counted is within its calls
NOTHING = "nothing"  # the child that calls no kernel


def available() -> bool:
    return shutil.which("valgrind") is not None


def counted(names: Sequence[str] = tuple(KERNELS), repeat_every: int = 0, deadline: float = math.inf) -> dict[str, Any]:
    """Instructions of one call of each kernel, with what they depend on. `repeat_every`: so many
    calls are followed by one more that is not counted as a call, as if the kernel did more work.
    Kernels that cannot be counted until `deadline`, by time.monotonic, are left out, as is what is
    no kernel."""
    totals = _executed([name for name in names if name in KERNELS], repeat_every, deadline)
    none = totals.pop(NOTHING, None)
    if none == 0:
        raise RuntimeError(f"instructions: mingcore._cpu has no {BINDING} (stripped?)")
    found = {} if none is None else {k: round((n - none) / CALLS) for k, n in totals.items()}
    return {"compiler": compiler(), "isa": "avx2", "per_call": found}


def compiler() -> str:
    """Which gcc made mingcore._cpu, as its comment section says."""
    binary = next((ROOT / "mingcore").glob("_cpu*.so")).read_bytes()
    compilers = re.findall(rb"GCC: \([^)]*\) ([\d.]+)", binary)
    return f"gcc {compilers[0].decode()}" if compilers else "unknown"


def judge(kept: dict[str, Any] | None, limit: float, deadline: float = math.inf) -> list[tuple[str, str, str, str]]:
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


def _executed(names: Sequence[str], repeat_every: int, deadline: float) -> dict[str, int]:
    """Instructions of each child, by kernel; without those that are not done at the deadline."""
    left = None if deadline == math.inf else max(deadline - time.monotonic(), 1e-3)
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        command += ["--collect-atstart=no", f"--toggle-collect={BINDING}"]
        command += [f"--log-file={folder}/%p", sys.executable, "-S", "-s"]
        command += [str(Path(__file__).resolve()), "--run", str(repeat_every), *names]
        run = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            output, error = run.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # the children too
            output, error = run.communicate()
        else:
            if run.returncode:
                raise RuntimeError(f"instructions: {error[-1000:]}")
        found = {}
        for line in output.splitlines():
            pid, name = line.split(" ", 1)
            log = Path(folder, pid)
            total = re.search(r"Collected : (\d+)", log.read_text()) if log.exists() else None
            if total:
                found[name] = int(total[1])
    return found


def _run(repeat_every: int, names: Sequence[str]) -> None:
    """Below valgrind: call the kernels, and say which child had which."""
    gc.disable()  # or it would run in some child
    cpu = native()
    calls = {name: KERNELS[name](cpu) for name in names}
    for call in calls.values():
        call()
    at_once = len(os.sched_getaffinity(0))
    for i, name in enumerate((NOTHING, *calls)):
        if i >= at_once:
            _wait()
        pid = os.fork()
        if pid == 0:
            for k in range(0 if name == NOTHING else CALLS):
                calls[name]()
                if repeat_every and k % repeat_every == 0:
                    calls[name]()
            os._exit(0)
        print(pid, name, flush=True)
    for _ in range(min(at_once, 1 + len(calls))):
        _wait()


def _wait() -> None:
    if status := os.wait()[1]:
        sys.exit(f"a child ended with {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        _run(int(sys.argv[2]), sys.argv[3:])
    else:
        print(counted())
