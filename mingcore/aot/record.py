"""Launches of Triton kernels taken down instead of made, as Triton itself would specialise them.

Triton's own binder turns the arguments into a signature, constants and attributes; the hook that it
calls before it compiles takes them, and says that nothing is to be done. So no rule of Triton's
specialisation is repeated here. What is taken down is `specialization_data`, the text from which
`JITFunction.preload` makes the same kernel again, in any process.
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

from ..ops._core.dispatch import rehearsal
from .targets import Target

_WARP = 32
_HERE = ("extern_libs",)  # options that name files of one machine


@dataclass(frozen=True, order=True)
class Launch:
    """A kernel as it would be started: its module and name, and Triton's specialisation as JSON."""

    module: str
    name: str
    specialization: str


@dataclass
class Recording:
    """Distinct launches, and how many were seen."""

    launches: set[Launch] = field(default_factory=set)
    seen: int = 0


class NoDriver:
    """A Triton driver of a GPU that is not here: it knows its target, and runs nothing."""

    def __init__(self, capability: int):
        self._target = GPUTarget("cuda", capability, _WARP)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return -self._target.arch  # no GPU's number: Triton keeps what it compiled by this

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def acting_as(made) -> Iterator[None]:
    """Within the block, Triton takes `made` for the driver of the GPU at hand."""
    before = driver._active
    driver.set_active(made)
    try:
        yield
    finally:
        driver._active = before


class _Address:
    """A meta tensor as Triton's binder looks at one: its type, and where it begins."""

    def __init__(self, tensor: torch.Tensor):
        self.dtype, self._offset = tensor.dtype, tensor.storage_offset() * tensor.itemsize

    def data_ptr(self) -> int:
        return self._offset


def portable(specialization: str) -> str:
    """Triton's text without what only holds on this machine."""
    values = json.loads(specialization)
    for name in _HERE:
        values["options"].pop(name, None)
    return json.dumps(values, sort_keys=True)


@contextmanager
def recording(target: Target) -> Iterator[Recording]:
    """Within the block, ops of meta tensors choose for `target` and launch nothing; what they would
    launch is in the recording.

    Not for two threads at once: Triton's driver and hook are the process's.
    """
    found, known = Recording(), set()
    plain, hook = JITFunction.run, knobs.runtime.jit_cache_hook

    def take(*, fn, compile, **_) -> bool:
        text = portable(compile["specialization_data"])
        found.launches.add(Launch(fn.module, fn.name.rpartition(".")[2], text))
        return True  # Triton takes that for "done"

    def run(kernel, *args, grid, warmup, **named):
        found.seen += 1
        key = _classes(kernel, args, named)
        if key in known:
            return
        known.add(key)
        args = [_stand_in(value) for value in args]
        named = {name: _stand_in(value) for name, value in named.items()}
        plain(kernel, *args, grid=grid, warmup=True, **named)

    JITFunction.run, knobs.runtime.jit_cache_hook = run, take
    try:
        with (
            rehearsal(),
            acting_as(NoDriver(target.capability)),
            assumed_target.assumed(target.capability, target.processors),
        ):
            yield found
    finally:
        JITFunction.run, knobs.runtime.jit_cache_hook = plain, hook


def _stand_in(value):
    return _Address(value) if isinstance(value, torch.Tensor) else value


def _classes(kernel: JITFunction, args: tuple, named: dict) -> tuple:
    """Equal only for launches that Triton cannot tell apart; finer than its own key, and fast."""
    constant = [param.is_constexpr for param in kernel.params]
    of_args = (value if c else _class_of(value) for value, c in zip(args, constant))
    fixed = {param.name for param in kernel.params if not param.is_constexpr}
    of_named = ((n, _class_of(v) if n in fixed else v) for n, v in named.items())
    return kernel, *of_args, *of_named


def _class_of(value) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, value.storage_offset() * value.itemsize % 16 == 0
    if type(value) is int:
        return int, value == 1, value % 16 == 0, abs(value) >> 31
    return value.__class__, value
