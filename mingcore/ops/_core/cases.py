"""Named inputs for every op: the real model's shapes, the middle size, and the awkward ones.

`for_op("linear")` lists the cases of an op; `case.make(device, dtype, seed)` draws its keyword
arguments for the public function of the same name in `mingcore.ops`. Inputs are random, never
zeros. Sizes follow the glossary: T tokens, K experts per token (or inner size), E experts,
H hidden, I expert width, B batch, P frames per patch, S slots or frames, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .backends import FAMILIES

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


def _load() -> None:
    for family in FAMILIES:
        import_module(f"mingcore.ops.{family}.cases")  # they register on import
