"""The CPU kernels, in this process: every instruction set of this build that this CPU runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mingcore import _cpu
from mingcore.ops._core.op import OPS
from tests.ops.runners import named

LARGE_SIZES = ("real", "mid")
SLOW_FAMILIES = ("gemm", "moe", "conv", "spectrum")  # whose large cases run in one type only


def run(op: str, name: str) -> dict[str, str | None]:
    """Why it was declined, or None, by "instruction set type". The second run has one thread."""
    declined = {}
    for isa, dtype in settings(op, name):
        with selected(isa):
            threads = torch.get_num_threads()
            torch.set_num_threads(2)
            try:
                reason = named.check(op, name, "cpu", dtype, before_again=lambda: torch.set_num_threads(1))
            except Exception as error:
                error.add_note(f"{op} {name} on {isa} in {dtype}")
                raise
            finally:
                torch.set_num_threads(threads)
        declined[f"{isa} {dtype}"] = reason
    return declined


def settings(op: str, name: str) -> Iterator[tuple[str, str]]:
    """The instruction sets and types that a case is run with."""
    family = getattr(OPS[op], "op", OPS[op]).family
    large = family in SLOW_FAMILIES and named.find(op, name).tags & {*LARGE_SIZES}
    for isa in _cpu.isas():
        if op == "flow_sample":  # every instruction set: test_flow.py
            yield from ((isa, dtype) for dtype in ("float32", "bfloat16") if isa == _cpu.isas()[0])
        elif not large:
            yield from ((isa, dtype) for dtype in named.DTYPES)
        elif isa != "scalar" and (family != "gemm" or isa == _cpu.isas()[0]):
            yield isa, "float32"


@contextmanager
def selected(isa: str) -> Iterator[None]:
    before = _cpu.isa()
    _cpu.set_isa(isa)
    try:
        yield
    finally:
        _cpu.set_isa(before)
