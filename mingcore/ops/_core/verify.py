"""Prove the GPU kernels on this machine's GPU, and keep what was proven.

The tests run in a process of their own, which ships with the package
(`mingcore.testing.verify_kernels`): a kernel that crashes, or hangs, loses only its own result.
"""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import BackendError, InputError
from . import backends as names_of_backends
from . import records
from .op import Implementation, forget_choices, implementations

WORKER = "mingcore.testing.verify_kernels"
MARK = "mingcore-verify "
KERNEL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Result:
    """What the tests of one kernel said. `reason` is empty when it passed."""

    op: str
    backend: str
    architecture: str
    passed: bool
    reason: str
    cases: int
    skipped: int
    seconds: float
    record: str | None

    def __str__(self) -> str:
        said = f"passed {self.cases} cases" if self.passed else f"FAILED: {self.reason}"
        return f"{self.op} {self.backend} {self.architecture}: {said} ({self.seconds:.1f} s)"


def run(
    ops: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    *,
    timeout_s: float = 600.0,
    folder: Path | None = None,
    progress: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run the tests of GPU kernels on the current GPU; a kernel that passes gets a record.

    ops, backends: which ("triton", "cuda"), None for all there are. timeout_s bounds the whole run,
    and no kernel takes more than two minutes of it. folder: where records go, by default the
    user's cache, which the automatic choice honours at once. Returns one result per kernel. Raises
    BackendError where there is no GPU, InputError for an op without a GPU kernel.
    """
    if not torch.cuda.is_available():
        raise BackendError("verify: no GPU here that PyTorch can use, so no kernel can be proven")
    device = torch.device("cuda", torch.cuda.current_device())
    kernels = _kernels(ops, backends)
    results, deadline = [], time.monotonic() + timeout_s
    while len(results) < len(kernels):
        for answer in _answers(kernels[len(results) :], deadline):
            results.append(_result(kernels[len(results)], answer, device, folder))
            if progress is not None:
                progress(results[-1])
    return results


def _kernels(ops: Sequence[str] | None, backends: Sequence[str] | None) -> list[Implementation]:
    backends = tuple(map(names_of_backends.check_backend, backends or ("triton", "cuda")))
    found = [entry for entry in implementations() if entry.backend in backends and entry.backend in ("triton", "cuda")]
    if ops is None:
        return found
    unknown = sorted(set(ops) - {entry.op for entry in found})
    if unknown:
        known = ", ".join(sorted({entry.op for entry in found})) or "none here"
        raise InputError(f"verify: ops must have a GPU kernel ({known}), got {', '.join(unknown)}")
    return [entry for entry in found if entry.op in ops]


def _result(entry: Implementation, answer: dict, device: torch.device, folder: Path | None) -> Result:
    passed = answer["reason"] == ""
    record = str(records.keep(entry, device, folder)) if passed else None
    forget_choices()
    here = records.architecture(device)
    return Result(entry.op, entry.backend, here, passed, record=record, **answer)


def _failure(reason: str, seconds: float = 0.0) -> dict:
    return {"reason": reason, "cases": 0, "skipped": 0, "seconds": seconds}


def _answers(kernels: list[Implementation], deadline: float):
    """The worker's answers for `kernels`, in order; ends after the first one it did not survive."""
    if time.monotonic() >= deadline:
        yield _failure("not reached within the time limit")
        return
    names = [f"{entry.op}:{entry.backend}" for entry in kernels]
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(
            [sys.executable, "-m", WORKER, *names], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_forward, args=(worker.stdout, lines), daemon=True)
        reader.start()
        try:
            for _ in kernels:
                started = time.monotonic()
                answer = _next_answer(lines, min(deadline, started + KERNEL_TIMEOUT_S))
                if answer is not None:
                    yield answer
                    continue
                took = time.monotonic() - started
                yield _failure(_cause_of_death(worker, errors), took)
                return
        finally:
            worker.kill()
            worker.wait()
            reader.join()
            worker.stdout.close()


def _forward(stream, lines: queue.Queue) -> None:
    for line in stream:
        if line.startswith(MARK):
            lines.put(line[len(MARK) :])
    lines.put(None)


def _next_answer(lines: queue.Queue, deadline: float) -> dict | None:
    try:
        line = lines.get(timeout=max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        return None
    return None if line is None else json.loads(line)


def _cause_of_death(worker: subprocess.Popen, errors) -> str:
    try:
        status = worker.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return "hung: no answer within the time limit"
    errors.seek(0)
    said = [line.strip() for line in errors.read().splitlines() if line.strip()]
    return f"the test process ended with status {status}: {said[-1] if said else 'no message'}"
