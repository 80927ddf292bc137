"""Records the launches of Triton kernels on meta tensors, as Triton would specialise them, instead of making them.

Triton's own binder turns the arguments into a signature, constants and attributes; the hook that it calls before it
compiles (`jit_cache_hook`) takes them and reports the compilation as done. So no rule of Triton's specialisation is
repeated here. Each launch is recorded as `specialization_data`, the text from which `JITFunction.preload` makes the
same kernel again, in any process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from mingcore_kernels.lib import target as assumed_target

from ..ops._core.op import run_on_meta
from .targets import Target

_WARP = 32
_MACHINE_OPTIONS = ("extern_libs",)  # they name files of this machine


@dataclass(frozen=True, order=True)
class Launch:
    """A kernel specialisation: its module and name, and Triton's specialisation data as JSON."""

    module: str
    name: str
    specialization: str


@dataclass
class Trace:
    """Distinct launches, and how many there were with repeated ones."""

    launches: set[Launch] = field(default_factory=set)
    seen: int = 0


class NoDriver:
    """A Triton driver for a GPU that is not present: it knows its target and runs nothing."""

    def __init__(self, capability: int):
        self._target = GPUTarget("cuda", capability, _WARP)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return -self._target.arch  # no GPU's index: Triton caches compiled kernels by it

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def acting_as(replacement) -> Iterator[None]:
    """Within the block, `replacement` is Triton's active driver."""
    before = driver._active
    driver.set_active(replacement)
    try:
        yield
    finally:
        driver._active = before


class _Address:
    """A meta tensor as Triton's binder sees one: its dtype and its address, here the offset in its storage."""

    def __init__(self, tensor: torch.Tensor):
        self.dtype, self._offset = tensor.dtype, tensor.storage_offset() * tensor.itemsize

    def data_ptr(self) -> int:
        return self._offset


def portable(specialization: str) -> str:
    """Triton's specialisation data without the options that only hold on this machine."""
    values = json.loads(specialization)
    for name in _MACHINE_OPTIONS:
        values["options"].pop(name, None)
    return json.dumps(values, sort_keys=True)


@contextmanager
def tracing(target: Target) -> Iterator[Trace]:
    """Within the block, ops on meta tensors choose kernels for `target`; their launches are recorded, not made.

    Not thread-safe: Triton's driver and hook belong to the process.
    """
    found, known = Trace(), set()
    original, hook = JITFunction.run, knobs.runtime.jit_cache_hook

    def record(*, fn, compile, **_) -> bool:
        text = portable(compile["specialization_data"])
        found.launches.add(Launch(fn.module, fn.name.rpartition(".")[2], text))
        return True  # Triton compiles nothing then

    def run(kernel, *args, grid, warmup, **named):
        found.seen += 1
        key = _launch_key(kernel, args, named)
        if key in known:
            return
        known.add(key)
        args = [_stand_in(value) for value in args]
        named = {name: _stand_in(value) for name, value in named.items()}
        original(kernel, *args, grid=grid, warmup=True, **named)

    JITFunction.run, knobs.runtime.jit_cache_hook = run, record
    try:
        with (
            run_on_meta(),
            acting_as(NoDriver(target.capability)),
            assumed_target.assumed(target.capability, target.processors),
        ):
            yield found
    finally:
        JITFunction.run, knobs.runtime.jit_cache_hook = original, hook


def _stand_in(value):
    return _Address(value) if isinstance(value, torch.Tensor) else value


def _launch_key(kernel: JITFunction, args: tuple, named: dict) -> tuple:
    """A key that is equal only for launches of one specialisation: finer than Triton's own, but cheap."""
    constant = [param.is_constexpr for param in kernel.params]
    of_args = (value if c else _argument_key(value) for value, c in zip(args, constant))
    fixed = {param.name for param in kernel.params if not param.is_constexpr}
    of_named = ((n, _argument_key(v) if n in fixed else v) for n, v in named.items())
    return kernel, *of_args, *of_named


def _argument_key(value) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.storage_offset() * value.itemsize % 16 == 0
    if type(value) is int:
        return int, value == 1, value % 16 == 0, abs(value) >> 31
    return value.__class__, value
