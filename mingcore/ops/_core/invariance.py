"""The batch-invariant mode: a row's bits do not depend on the other rows of its batch.

Our CPU kernels take every row for itself, so there it holds anyway, but for `moe_mlp` in bfloat16
with AVX512-BF16, which has another product from 64 tokens on. PyTorch's products, and some of its
activations, do not: of random rows put in another order `F.linear`, `F.silu`, tanh-GELU and
attention changed bits (float32 and bfloat16, x86), as an element's place decides whether a vector
or a scalar loop makes it, and an expert's product has as many rows as chose it. In this mode the
reference ops are called with one row of the batch at a time, each in memory of its own: what shapes
and alignment they see is the row's own affair. GPU kernels see what they are given: theirs is to be
called with the same shapes always (`runtime.model_runner`).
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import torch
from torch import Tensor

_on: ContextVar[bool] = ContextVar("mingcore_batch_invariant", default=False)


@contextmanager
def batch_invariant(on: bool = True) -> Iterator[None]:
    """Within the block, a row of a batch gets the same bits whoever shares the batch and wherever
    in it the row is, on the backends "cpu" and "reference".

    A row is an entry of the first dimension of an op's input: a token for `moe_mlp` and
    `route_topk`, a request for x [B, T, H]. Not for `grouped_gemm`, whose rows are grouped. Holds
    for the current thread or task, around compiled functions too; slower on "reference". on False:
    as it was.
    """
    with _set(on or _on.get()):
        yield


@contextmanager
def _set(on: bool) -> Iterator[None]:
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def is_batch_invariant() -> bool:
    """Whether the mode is on here."""
    return _on.get()


def by_row(in_place: tuple[str, ...] = (), **rows: int) -> Callable[[Callable], Callable]:
    """In this mode, call the decorated function once per row; its results are put together.

    rows: by name, the dimension along which an argument has the rows, the first one B of them; an
    argument that is None, or has one entry for all, is the same for every row. in_place: arguments
    with rows first that are too large to be copied, and begin at aligned memory by their nature.
    """

    def decorate(function: Callable) -> Callable:
        names = tuple(inspect.signature(function).parameters)
        first = min(rows, key=names.index)

        @wraps(function)
        def rowwise(*args, **kwargs):
            if not _on.get():
                return function(*args, **kwargs)
            kwargs.update(zip(names, args))
            x = kwargs[first]
            B = x.shape[rows[first]]
            if x.dim() < 2 or not B:
                return function(**kwargs)
            results = []
            with _set(False):  # what a row is made of is not cut again
                for b in range(B):
                    row = dict(kwargs)
                    for name in in_place:
                        if row.get(name) is not None:
                            row[name] = row[name][b : b + 1]
                    for name, dim in rows.items():
                        row[name] = _row(row.get(name), b, dim, B)
                    results.append(function(**row))
            return _together(results)

        return rowwise

    return decorate


def _row(x: Tensor | None, b: int, dim: int, B: int) -> Tensor | None:
    if x is None or x.shape[dim] != B:
        return x
    return x.narrow(dim, b, 1).clone(memory_format=torch.contiguous_format)


def _together(results: list) -> Tensor | tuple[Tensor, ...]:
    if isinstance(results[0], tuple):
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
    return torch.cat(results)
