"""Which GPU tiles are chosen for: the one at hand, or one that is named where there is none.

Every choice of these kernels is a function of shapes, types and two numbers of the GPU, its compute
capability and how many multiprocessors it has; they come from here. So a launch with meta tensors,
under `assumed`, takes the very configuration that the same launch takes on that GPU.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

H200 = (90, 132)  # what the tables were made for; also where kernels are interpreted
_SHARED_KB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227}
_assumed: ContextVar[tuple[int, int]] = ContextVar("assumed", default=H200)


@contextmanager
def assumed(capability: int, processors: int) -> Iterator[None]:
    """Within the block, tensors that are on no GPU are meant for such a one."""
    token = _assumed.set((capability, processors))
    try:
        yield
    finally:
        _assumed.reset(token)


def device_of(index: int | None) -> tuple[int, int]:
    """Compute capability (such as 90) and multiprocessors of a GPU; None: the assumed one."""
    return _assumed.get() if index is None else _properties(index)


@functools.cache
def _properties(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return 10 * properties.major + properties.minor, properties.multi_processor_count


def capability_of(index: int | None) -> int:
    """Compute capability of a GPU, such as 90; None: of the assumed one."""
    return device_of(index)[0]


def processors_of(index: int | None) -> int:
    """Multiprocessors of a GPU; None: of the assumed one."""
    return device_of(index)[1]


def shared_bytes(capability: int) -> int:
    """Shared memory that one block may have, in bytes; 99 KB on architectures not listed."""
    return _SHARED_KB.get(capability, 99) << 10
