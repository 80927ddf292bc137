"""How a module declares what it needs of a checkpoint: names, shapes and roles, on a `LoadPlan`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops
from ..errors import CheckpointError
from .declared import Build, Declared, Piece, Stacked
from .formats import Formats, resolve
from .layers import Linear
from .load_plan import Check, LoadPlan, Stored
from .sources import Source

T = TypeVar("T")


class Weights:
    """A view of a checkpoint below a prefix, on behalf of one module.

    What is asked for is taken down in the plan; what comes back is declared, not read.
    """

    def __init__(self, plan: LoadPlan, prefix: str = ""):
        self._plan, self.prefix = plan, prefix

    @property
    def what(self) -> str:
        """The checkpoint's name, for errors."""
        return self._plan.source.what

    @property
    def formats(self) -> Formats:
        return self._plan.formats

    @property
    def dtype(self) -> torch.dtype:
        """Of matrices that are not quantised."""
        return self.formats.dtype

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of vectors (biases, norms), and of what flows between the modules."""
        return self.formats.activation_dtype

    @property
    def device(self) -> torch.device:
        return self._plan.device

    def sub(self, name: str) -> Weights:
        """The view one level further down."""
        return Weights(self._plan, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        return self.prefix + name in self._plan.source

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape found, or None where there is no such tensor."""
        return self._plan.source.shape(self.prefix + name) if self.has(name) else None

    def count(self, name: str) -> int:
        """How many entries `name.0`, `name.1`, ... there are: one more than the largest index."""
        start = f"{self.prefix}{name}."
        found = [
            int(key[len(start) :].split(".", 1)[0])
            for key in self._plan.source.names()
            if key.startswith(start) and key[len(start) :].split(".", 1)[0].isdecimal()
        ]
        return max(found, default=-1) + 1

    def ignore(self, name: str, why: str) -> None:
        """Declare a tensor of the official layout that inference does not use."""
        self._plan.ignores(self.prefix + name, why)

    def piece(
        self,
        name: str,
        shape: Sequence[int],
        place: tuple[int | slice, ...] = (),
        *,
        entry: int | None = None,
        count: int | None = None,
    ) -> Piece:
        """A tensor of `shape` at a place of a `Stacked` one.

        entry, count: it is entry `entry` of a tensor that stacks `count` of them.
        """
        key = self.prefix + name
        self._plan.needs(key, tuple(shape) if entry is None else (count, *shape))
        return Piece(key, place, entry)

    def stores(
        self, shape: Sequence[int], role: str, *, packed: bool, activation: str | None = None, name: str = ""
    ) -> None:
        """Takes down that a tensor of this shape stays in memory, as it is or as an op packs it."""
        self._plan.stored.append(Stored(f"{self.prefix}{name}.", tuple(shape), role, packed, activation))

    def vector(self, name: str, n: int) -> Declared[Tensor]:
        """A norm's weight or the like: [n] in the activations' dtype."""
        self.stores((n,), "vector", packed=False)
        return Stacked((n,), "vector", (self.piece(name, (n,)),))

    def float32(self, name: str, *shape: int) -> Declared[Tensor]:
        """A tensor in float32, whatever the weights are kept in: to be folded into others."""
        return Stacked(shape, "float32", (self.piece(name, shape),))

    def rows(self, names: Sequence[str], rows: Sequence[int], k: int, role: str) -> Stacked:
        """Matrices `name.weight` [rows[i], k] one below the other: [sum(rows), k]."""
        start, pieces = 0, []
        for name, n in zip(names, rows, strict=True):
            pieces.append(self.piece(f"{name}.weight", (n, k), (slice(start, start + n),)))
            start += n
        return Stacked((start, k), role, tuple(pieces))

    def matrix(self, names: Sequence[str], rows: Sequence[int], k: int) -> Declared[Tensor]:
        """Matrices [rows[i], k] one below the other, kept as they are: [sum(rows), k]."""
        self.stores((sum(rows), k), "matrix", packed=False, name=names[0])
        return self.rows(names, rows, k, "matrix")

    def linear(
        self,
        names: str | Sequence[str],
        rows: int | Sequence[int],
        k: int,
        *,
        bias: bool | Collection[str] | None = True,
        activation: str | None = None,
        role: str = "matrix",
    ) -> Declared[Linear]:
        """One linear layer, packed for its device, out of one or several below each other.

        bias: all have one, none has, only those named have one, or (None) those that the
        checkpoint gives one; where some lack it theirs is zero. activation: what will be fused
        into it ("swiglu" packs gate and up rows side by side). role: "block" is one of the large
        matrices that `formats.weights` is for.
        """
        names = [names] if isinstance(names, str) else list(names)
        rows = [rows] if isinstance(rows, int) else list(rows)
        if bias is None:
            bias = [name for name in names if self.has(f"{name}.bias")]
        elif isinstance(bias, bool):
            bias = names if bias else []
        biases = self._biases(names, rows, bias) if bias else None
        weight = self.rows(names, rows, k, role)
        self.stores(weight.shape, role, packed=True, activation=activation, name=names[0])
        packed = Build(ops.pack_linear, weight, format=self.formats.of(role), activation=activation)
        return Build(Linear, weight=packed, bias=biases)

    def _biases(self, names: Sequence[str], rows: Sequence[int], biased: Collection[str]) -> Declared[Tensor]:
        self.stores((sum(rows),), "vector", packed=False, name=names[0])
        start, pieces = 0, []
        for name, n in zip(names, rows, strict=True):
            if name in biased:
                pieces.append(self.piece(f"{name}.bias", (n,), (slice(start, start + n),)))
            start += n
        return Stacked((start,), "vector", tuple(pieces), padded=len(pieces) < len(names))

    def check_buffer(self, name: str, expected: Tensor, *, tolerance: float = 1e-2) -> None:
        """A buffer that is computed here in float32: the one stored (often rounded) must agree."""
        key, shape = self.prefix + name, tuple(expected.shape)

        def compare(stored: Tensor) -> None:
            error = float((stored - expected).abs().max() / expected.abs().max())
            if not error <= tolerance:
                raise CheckpointError(
                    f"{self.what}: {key} differs from the computed buffer by {error:.2g} of "
                    f"its maximum; expected {_head(expected)}, got {_head(stored)}"
                )

        self._plan.needs(key, shape)
        self._plan.checks.append(Check(key, shape, torch.float32, compare))

    def check_integers(self, name: str, expected: Sequence[int], why: str) -> None:
        """Integers that the config states as well: where they are stored they must be the same."""
        key, shape = self.prefix + name, self.shape(name)

        def compare(stored: Tensor) -> None:
            if stored.tolist() != list(expected):
                raise CheckpointError(
                    f"{self.what}: {key} must be the config's {list(expected)}, got {stored.tolist()}"
                )

        self.ignore(name, why)
        if shape is not None:
            self._plan.checks.append(Check(key, shape, torch.int64, compare))


def _head(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values.flatten()[:3].tolist()) + ", ...]"


def plan_load(
    source: Source, declare: Callable[[Weights], Any], *, device: torch.device, formats: Formats
) -> LoadPlan[Any]:
    """The plan of what `declare` asks for; nothing is read.

    declare: gives what is declared, in lists, tuples or mappings if it likes.
    """
    plan = LoadPlan(source, device, formats)
    plan.complete(declare(Weights(plan)))
    return plan


def assemble(
    source: Source,
    declare: Callable[[Weights], Declared[T]],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    activation_dtype: torch.dtype | None = None,
) -> T:
    """A module alone from a source, whose every tensor must be used and every gap filled.

    dtype, activation_dtype: see `formats.resolve`. Raises CheckpointError with the keys that are
    missing, unexpected or misshapen.
    """
    device = torch.device(device)
    plan = plan_load(source, declare, device=device, formats=resolve(None, dtype, device, activation_dtype))
    plan.require_complete()
    return plan.read()
