"""Named inputs for every op (the real model's shapes, the middle size, and the awkward ones), its
cost, and its baselines. The `cases.py` of a family declares them; they are imported when asked for.

`for_op("linear")` lists the cases of an op; `case.make(device, dtype, seed)` draws its keyword
arguments for the public function of the same name in `mingcore.ops`. Inputs are random, never
zeros. Sizes follow the glossary: T tokens, K experts per token (or inner size), E experts,
H hidden, I expert width, B batch, P frames per patch, S slots or frames, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .backends import FAMILIES
from .layouts import tensors_in

LARGE = "large"  # more than about 64 MB: for benches and machines with room


class Draw:
    """Random tensors of one device, dtype and seed."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype, seed: int):
        self.device, self.dtype = torch.device(device), dtype
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Gaussian values in `dtype`, or in the dtype of the draw."""
        dtype = dtype or self.dtype
        x = torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype)
        return x.mul_(scale)

    def matrix(self, *shape: int) -> Tensor:
        """A weight whose products keep the size of their input."""
        return self.normal(*shape, scale=shape[-1] ** -0.5)

    def near_one(self, n: int) -> Tensor:
        """The weight of a norm."""
        return (1 + self.normal(n, scale=0.2, dtype=torch.float32)).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Float32 values in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device)

    def angles(self, B: int, T: int, half: int) -> tuple[Tensor, Tensor]:
        """cos and sin [B, T, half] float32 of random angles."""
        turn = 2 * math.pi * self.uniform(B, T, half)
        return turn.cos(), turn.sin()

    def choices(self, T: int, K: int, E: int) -> Tensor:
        """K different experts of E for each of T tokens, int32."""
        return self.uniform(T, E).argsort(dim=1)[:, :K].to(torch.int32)

    def weights(self, T: int, K: int) -> Tensor:
        """Positive routing weights [T, K] float32 that sum to one."""
        w = 0.1 + self.uniform(T, K)
        return w / w.sum(1, keepdim=True)


@dataclass(frozen=True)
class Case:
    """One named input of one op."""

    op: str
    name: str
    build: Callable[..., dict[str, Any]] = field(repr=False)
    dims: dict[str, Any]
    tags: frozenset[str]

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    def make(
        self, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> dict[str, Any]:
        """Fresh keyword arguments for `getattr(mingcore.ops, op)`, by name."""
        return self.build(Draw(device, dtype, seed), **self.dims)


_CASES: dict[str, list[Case]] = {}


def case(op: str, name: str, build: Callable[..., dict], *tags: str, **dims: Any) -> None:
    """Add a case; `name` is unique within the op."""
    cases = _CASES.setdefault(op, [])
    if any(c.name == name for c in cases):
        raise ValueError(f"case: {op} has a case named {name!r} already")
    cases.append(Case(op, name, build, dims, frozenset(tags)))


def ops_with_cases() -> list[str]:
    """Every op that has cases."""
    _load()
    return sorted(_CASES)


def for_op(op: str, *, tag: str | None = None, large: bool = False) -> list[Case]:
    """The cases of an op, without those of more than about 64 MB unless `large`.

    `tag` keeps those with one tag: "real" (the released model's shapes), "mid" (the middle size),
    "odd", "strided", "edge"; "verify": the ones that prove a GPU kernel, of ops where not all do.
    Raises ValueError for an op without cases.
    """
    _load()
    if op not in _CASES:
        raise ValueError(f"for_op: op must be one of {sorted(_CASES)}, got {op!r}")
    return [c for c in _CASES[op] if (large or LARGE not in c.tags) and (tag is None or tag in c.tags)]


@dataclass(frozen=True)
class Cost:
    """Minimum of bytes moved and of operations made: every input is read once and every output
    written once; weights that no token selects, and keys that no query attends to, do not count.
    A multiply-add is two operations."""

    nbytes: int
    flops: int

    def gbs(self, seconds: float) -> float:
        return self.nbytes / seconds / 1e9

    def tflops(self, seconds: float) -> float:
        return self.flops / seconds / 1e12


CostOf = Callable[[dict[str, Any], int, tuple[Tensor, ...]], Cost]
Baselines = Iterator[tuple[str, Callable[[], Any]]]  # names and prepared calls
_COSTS: dict[str, CostOf] = {}
_BASELINES: dict[tuple[str, bool], Callable[[dict[str, Any]], Baselines]] = {}


def cost_of(*ops: str) -> Callable[[CostOf], CostOf]:
    """Decorate what counts the cost of these ops from the keyword arguments, the bytes written, and
    the outputs. Others cost every tensor once, and 5 operations per element of the result."""

    def add(count: CostOf) -> CostOf:
        _COSTS.update(dict.fromkeys(ops, count))
        return count

    return add


def cost(op: str, kwargs: dict[str, Any], outputs: tuple[Tensor, ...]) -> Cost:
    """The cost of a call, by its keyword arguments and the tensors it returned or wrote. An in-place
    op costs what the allocating one does; its output is not read."""
    _load()
    if op.endswith("_") and op not in _COSTS:
        op, kwargs = op[:-1], {name: t for name, t in kwargs.items() if name != "out"}
    return _COSTS.get(op, _everything_once)(kwargs, sum(out.nbytes for out in outputs), outputs)


def bytes_of(kwargs: dict[str, Any]) -> int:
    """Of all tensors among the arguments."""
    return sum(t.nbytes for t in tensors_in(kwargs))


def _everything_once(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    return Cost(bytes_of(kwargs) + written, 5 * sum(out.numel() for out in outputs))


def baselines_of(op: str, *, more: bool = False) -> Callable[[Callable], Callable]:
    """Decorate a generator of the op's baselines: how PyTorch's own operators compute the same.

    It takes the keyword arguments of the public function and yields (name, call) with everything
    prepared outside the clock. Names of those that wait for a GPU begin with "loop". `more`: a
    second set, of those that take long or much memory.
    """

    def add(function: Callable[[dict[str, Any]], Baselines]) -> Callable:
        _BASELINES[op, more] = function
        return function

    return add


def baselines(op: str, kwargs: dict[str, Any], *, more: bool = False) -> dict[str, Callable[[], Any]]:
    """The prepared baselines of a call by name; none for ops that have none."""
    _load()
    found = {}
    for second in (False, True)[: 1 + more]:
        if (op, second) in _BASELINES:
            found.update(_BASELINES[op, second](kwargs))
    return found


def _load() -> None:
    for family in FAMILIES:
        import_module(f"mingcore.ops.{family}.cases")  # they register on import
