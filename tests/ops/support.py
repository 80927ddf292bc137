"""What the tests of the ops share: random inputs, tolerances, the flat arguments of a call,
and why an implementation does not take them."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import mingcore.ops as ops
from mingcore.ops._core import backends
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops._core.op import OPS, Op, flat_call
from mingcore.ops._core.support import anywhere

# max |a - b| / max |b| against the float64 loops, by the type that is computed and rounded in
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
DTYPES = tuple(TOLERANCE)


class Draw:
    """Random tensors of one dtype; never zeros."""

    def __init__(self, dtype: torch.dtype, seed: int = 0):
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return x.to(dtype or self.dtype)

    def weight(self, *shape: int) -> Tensor:
        return (self(*shape, dtype=torch.float64) * shape[-1] ** -0.5).to(self.dtype)

    def ids(self, T: int, K: int, E: int) -> Tensor:
        return self(T, E).argsort(dim=1)[:, :K].to(torch.int32)

    def angles(self, B: int, T: int, half: int) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        turn = 6 * self(B, T, half, dtype=torch.float64)
        return turn.cos().to(wide), turn.sin().to(wide)


def check(got: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    assert got.shape == expected.shape
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error <= factor * TOLERANCE[dtype], f"relative error {error:.2e}"


def reference(op: str):
    """The public function on the reference backend, outputs poisoned until they are written."""
    function = functools.partial(getattr(ops, op), backend="reference")

    def call(*args, **kwargs):
        with nan_poisoned():
            return function(*args, **kwargs)

    return call


def flat_arguments(op: str, kwargs: dict) -> dict:
    """The arguments, by the schema's names, that the public function hands on for these keyword arguments."""
    form, call = OPS[op], flat_call(op, (), kwargs)
    names = {} if isinstance(form, Op) else {target: result for result, target in form.writes.items()}
    return {name: call.args[names.get(name, name)] for name in form.names}


def unsupported_reason(op: Op, backend: str, args: Sequence[Any], any_device: bool = False) -> str | None:
    """For arguments in the order of the op's schema; any_device: tensors may be on any."""
    assert backends.load(backend, op.family) is None
    found = op.implementations[backend]
    reason = functools.partial(found.support.reason, op.first, anywhere) if any_device else found.reason
    return reason(dict(zip(op.names, args, strict=True)))


def refusal(name: str, backend: str, *args: Any, **kwargs: Any) -> str | None:
    """Why `backend` does not take these arguments of the public function, on whatever device they are."""
    call = flat_call(name, args, kwargs)
    assert backends.load(backend, call.op.family) is None
    found = call.op.implementations[backend]
    return found.support.reason(call.op.first, anywhere, call.args, call.renamed)
