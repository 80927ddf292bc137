"""The same values in awkward places: strided, shifted and poisoned tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def poison_(x: Tensor) -> Tensor:
    """Fill with NaN, or with the type's largest value where there is no NaN. In place."""
    if x.dtype.is_floating_point or x.dtype.is_complex:
        return x.fill_(math.nan)
    return x.fill_(True if x.dtype == torch.bool else torch.iinfo(x.dtype).max)


def strided(x: Tensor, gap: int = 3) -> Tensor:
    """The values of `x` with `gap` poisoned elements after every last-dimension row."""
    wide = poison_(x.new_empty(*x.shape[:-1], x.shape[-1] + gap))
    view = wide[..., : x.shape[-1]]
    return view.copy_(x)


def transposed(x: Tensor) -> Tensor:
    """The values of `x` with its last two dimensions swapped in memory."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def shifted(x: Tensor, elements: int = 1) -> Tensor:
    """The values of `x`, contiguous, `elements` after an aligned address, poison around it."""
    room = poison_(x.new_empty(x.numel() + 2 * elements))
    return room[elements : elements + x.numel()].view(x.shape).copy_(x)


_ALLOCATORS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class _Poison(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _ALLOCATORS and isinstance(out, Tensor):
            poison_(out)
        return out


@contextmanager
def nan_poisoned() -> Iterator[None]:
    """Within the block every tensor made uninitialised from Python starts as NaN.

    So an op that does not write all of its output is caught. Integers get their largest value.
    Allocations inside a PyTorch kernel are not seen; those are PyTorch's own to fill.
    """
    with _Poison():
        yield


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and objects with tensor attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "__dict__"):
        yield from tensors_in(vars(value))


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested tuples, lists, mappings and dataclasses with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(part, change) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{k: map_tensors(part, change) for k, part in vars(value).items()})
    return value
