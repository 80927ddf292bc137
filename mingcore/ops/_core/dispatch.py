"""From a public op to the function that serves it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn import Parameter

from . import library  # noqa: F401  (defines torch.ops.mingcore)
from .registry import check_backends, select

_PLAIN = frozenset((Tensor, Parameter))
_rehearsing: ContextVar[bool] = ContextVar("rehearsing", default=False)


@contextmanager
def rehearsal() -> Iterator[None]:
    """Within the block, ops of meta tensors go to the chosen backend's functions, not to the fakes:
    for those who watch what these would launch (`aot.record`)."""
    token = _rehearsing.set(True)
    try:
        yield
    finally:
        _rehearsing.reset(token)


def _faked() -> bool:
    return not _rehearsing.get()


def call(op: str, backend: str | None, *args):
    """Straight to the chosen function; through PyTorch's dispatcher while a graph is being traced,
    and for tensors that are not plain data (fake, functional, meta)."""
    x = args[0]
    if torch.compiler.is_compiling() or type(x) not in _PLAIN or (x.is_meta and _faked()):
        check_backends(backend or "auto")
        return getattr(torch.ops.mingcore, op)(*args, backend=backend or "")
    return select(op, args, backend)(*args)
