"""Runs the cases of GPU kernels on this machine's GPU: `python -m ... linear:triton moe_mlp:cuda`.

Prints one line of JSON per kernel, after a mark. `mingcore.ops.verify` starts this in a process of its own and writes
a record for every kernel that passes. A kernel passes when, for every case that it supports and every dtype, with
outputs poisoned by NaN, its result is within the oracle's tolerance, two runs give the same bits, and so does the
replay of a CUDA graph. Of an op with cases tagged "verify" only those run, for the others are too many.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError
from ..ops._core import cases
from ..ops._core.layouts import nan_poisoned
from ..ops._core.verify import MARK
from . import compare

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_kernel(op: str, backend: str, device: str = "cuda") -> dict[str, Any]:
    """{"reason": "" or what failed, "cases", "skipped", "seconds"} of one kernel."""
    started = time.monotonic()
    done = skipped = 0
    reason = ""
    for case in cases.for_op(op, tag="verify", large=True) or cases.for_op(op):
        for dtype in DTYPES:
            kwargs = case.make(device, dtype, seed=done + skipped)
            try:
                with nan_poisoned():
                    got = compare.run(op, kwargs, backend=backend)
            except BackendError:
                skipped += 1
                continue
            done += 1
            reason = _failure(op, backend, kwargs, got)
            if reason:
                reason = f"{case.name} {str(dtype).removeprefix('torch.')}: {reason}"
                break
        if reason:
            break
    if not done:
        reason = "declined every case"
    seconds = time.monotonic() - started
    return {"reason": reason, "cases": done, "skipped": skipped, "seconds": seconds}


def _failure(op: str, backend: str, kwargs: dict[str, Any], got: tuple[Tensor, ...]) -> str:
    """Why the result `got` fails, or ""."""
    try:
        compare.check_op(op, kwargs, got)
    except AssertionError as error:
        return str(error)
    if not _same_bits(got, compare.run(op, kwargs, backend=backend)):
        return "two runs give different bits"
    if got and got[0].is_cuda and not _same_bits(got, _replayed(op, backend, kwargs)):
        return "the replay of a CUDA graph gives other bits"
    return ""


def _replayed(op: str, backend: str, kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = compare.run(op, kwargs, backend=backend)
    for tensor in out:
        tensor.fill_(-1)
    graph.replay()
    torch.cuda.synchronize()
    return out


def _same_bits(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def main(names: list[str], device: str = "cuda") -> None:
    for name in names:
        op, backend = name.split(":")
        print(MARK + json.dumps(check_kernel(op, backend, device)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
