"""From a checkpoint's tensors to a module's, each read once and straight into its place.

A module asks a `Weights` view for what it needs, by name and expected shape. It is built twice:
first dry, on the meta device, so that every missing, unexpected or misshapen tensor is known
before a byte is read; then for real. Files are read by offset in blocks of a few MiB and converted
on the way, so beside the weights themselves only one block, or the one matrix that is being
packed or quantised, is ever in memory. Quantised formats are made from the values as stored, not
from a rounded copy of them.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops
from ..errors import CheckpointError
from ..ops._core.packing import QUANTISED, format_of, packed_bytes
from .formats import Formats, resolve
from .headers import read_headers
from .layers import Linear
from .sources import DictTensors, FileTensors, HeaderTensors

__all__ = ["DictTensors", "FileTensors", "LoadReport", "Source", "Weights", "assemble", "read_headers"]

SHOWN = 8
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
T = TypeVar("T")


@dataclass
class LoadReport:
    """What did not fit between a checkpoint and the model, and what is known to be unused."""

    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    not_finite: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def lines(self) -> list[str]:
        """One line for each tensor that does not fit: its key, the shape expected and found."""
        return [
            *(f"missing key {name} of shape {list(shape)}" for name, shape in self.missing.items()),
            *(
                f"{name} must be {list(expected)}, got {list(found)}"
                for name, (expected, found) in self.mismatched.items()
            ),
            *(f"unexpected key {name} of shape {list(shape)}" for name, shape in self.unexpected.items()),
        ]

    def summary(self) -> str:
        lines = self.lines()
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        return "; ".join(lines[:SHOWN]) + more


Source = FileTensors | DictTensors | HeaderTensors


@dataclass
class _Ledger:
    report: LoadReport
    used: set[str] = field(default_factory=set)
    # bytes that stay allocated, by (prefix of the names, format): what a dry run is a plan of
    sizes: Counter[tuple[str, str]] = field(default_factory=Counter)


class Weights:
    """A view of a checkpoint below a prefix, on behalf of one module.

    `formats` says how matrices and vectors are kept. Tensors come on `device`, or on the meta
    device when `dry`.
    """

    def __init__(
        self, source: Source, *, device: torch.device, formats: Formats, dry: bool, ledger: _Ledger, prefix: str = ""
    ):
        self.source, self.device, self.formats, self.dry = source, device, formats, dry
        self._ledger, self.prefix = ledger, prefix

    @property
    def dtype(self) -> torch.dtype:
        """Of matrices that are not quantised."""
        return self.formats.dtype

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of vectors (biases, norms), and of what flows between the modules."""
        return self.formats.activation_dtype

    def sub(self, name: str) -> Weights:
        """The view one level further down."""
        return Weights(
            self.source,
            device=self.device,
            formats=self.formats,
            dry=self.dry,
            ledger=self._ledger,
            prefix=f"{self.prefix}{name}.",
        )

    def has(self, name: str) -> bool:
        return self.prefix + name in self.source

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape found, or None where there is no such tensor."""
        return self.source.shape(self.prefix + name) if self.has(name) else None

    def count(self, name: str) -> int:
        """How many entries `name.0`, `name.1`, ... there are: one more than the largest index."""
        start = f"{self.prefix}{name}."
        found = [
            int(key[len(start) :].split(".", 1)[0])
            for key in self.source.names()
            if key.startswith(start) and key[len(start) :].split(".", 1)[0].isdecimal()
        ]
        return max(found, default=-1) + 1

    def ignore(self, name: str, why: str) -> None:
        """Declare a tensor of the official layout that inference does not use."""
        if self.has(name):
            self._ledger.used.add(self.prefix + name)
            self._ledger.report.unused[self.prefix + name] = why

    def staged(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for values that are packed or copied from there; by default of `dtype`."""
        device = "meta" if self.dry else self.device
        return torch.empty(shape, dtype=dtype or self.dtype, device=device)

    def new(self, *shape: int, name: str = "") -> Tensor:
        """An unfilled matrix (or a stack of them) that stays as it is; name: for the plan."""
        made = self.staged(*shape)
        self.keeps(made.nbytes, format_of(made.dtype), name)
        return made

    def new_vector(self, *shape: int, name: str = "") -> Tensor:
        """An unfilled vector (or a stack of them) in the activations' dtype; name: for the plan."""
        made = self.staged(*shape, dtype=self.activation_dtype)
        self.keeps(made.nbytes, format_of(made.dtype), name)
        return made

    def keeps(self, nbytes: int, format: str, name: str = "") -> None:
        """Takes down, in a dry run, that so many bytes of this module stay, in this format."""
        if self.dry:
            self._ledger.sizes[f"{self.prefix}{name}.", format] += nbytes

    def keeps_packed(self, shape: Sequence[int], format: str, *, activation: str | None = None, name: str = "") -> None:
        """The same of a matrix [N, K], or a stack of them, that an op packs."""
        *stack, n, k = shape
        size = packed_bytes(n, k, format, self.device.type, swiglu=activation == "swiglu")
        self.keeps(math.prod(stack) * size, format, name)

    def stored_dtype(self, *names: str) -> torch.dtype:
        """What holds the values of these tensors as they are stored: float32 for float64."""
        found = [self.source.dtype(self.prefix + name) for name in names if self.has(name)]
        wide = self.dtype if not found else found[0]
        for dtype in found:
            wide = torch.promote_types(wide, dtype)
        return wide if wide in _FLOATS[:3] else torch.float32

    def fill(self, name: str, dest: Tensor, *, index: int | None = None, count: int | None = None) -> None:
        """Read a tensor into `dest`; its shape must be that of `dest`.

        index, count: `dest` is entry `index` of a tensor that stacks `count` of them.
        """
        shape = tuple(dest.shape)
        key, expected = self.prefix + name, shape if index is None else (count, *shape)
        self._ledger.used.add(key)
        if self.dry:
            self._check(key, expected)
        elif key not in self.source or self.source.shape(key) != expected:
            dest.zero_()  # listed in the report: only strict=False comes here
        elif not self.source.fill(key, dest, index) and key not in self._ledger.report.not_finite:
            self._ledger.report.not_finite.append(key)
            warnings.warn(
                f"{self.source.what}: {key} holds values that are not finite (NaN or infinity, as {dest.dtype})",
                stacklevel=2,
            )

    def finite(self, *names: str, format: str) -> None:
        """Raises CheckpointError where one of these was not: a quantised format cannot hold it."""
        for name in names:
            if self.prefix + name in self._ledger.report.not_finite:
                raise CheckpointError(
                    f"{self.source.what}: {self.prefix + name} holds values that are not finite, "
                    f"which {format} cannot; load it with weights='bf16' or 'fp32'"
                )

    def _check(self, key: str, expected: tuple[int, ...]) -> None:
        report = self._ledger.report
        if key not in self.source:
            report.missing[key] = expected
            return
        if self.source.shape(key) != expected:
            report.mismatched[key] = (expected, self.source.shape(key))
        if self.source.dtype(key) not in _FLOATS:
            raise CheckpointError(
                f"{self.source.what}: {key} must hold float32, bfloat16 or float16, got {self.source.dtype(key)}"
            )

    def vector(self, name: str, n: int) -> Tensor:
        """A norm's weight or the like: [n] in the activations' dtype."""
        dest = self.new_vector(n)
        self.fill(name, dest)
        return dest

    def matrix(self, names: Sequence[str], rows: Sequence[int], k: int) -> Tensor:
        """Matrices [rows[i], k] one below the other, kept as they are: [sum(rows), k]."""
        return self._read(self.new(sum(rows), k, name=names[0]), names, rows)

    def _read(self, dest: Tensor, names: Sequence[str], rows: Sequence[int]) -> Tensor:
        start = 0
        for name, count in zip(names, rows, strict=True):
            self.fill(f"{name}.weight", dest[start : start + count])
            start += count
        return dest

    def to_quantise(self, names: Sequence[str], rows: Sequence[int], k: int) -> Tensor:
        """Matrices one below the other as they are stored, to be quantised: finite, [sum, k]."""
        keys = [f"{name}.weight" for name in names]
        dest = self.staged(sum(rows), k, dtype=self.stored_dtype(*keys))
        self._read(dest, names, rows)
        self.finite(*keys, format=self.formats.weights)
        return dest

    def linear(
        self,
        names: str | Sequence[str],
        rows: int | Sequence[int],
        k: int,
        *,
        bias: bool | Collection[str] | None = True,
        activation: str | None = None,
        block: bool = False,
        dtype: torch.dtype | None = None,
    ) -> Linear:
        """One linear layer, packed for its device, out of one or several below each other.

        bias: all have one, none has, only those named have one, or (None) those that the
        checkpoint gives one; where some lack it theirs is zero. activation: what will be fused
        into it ("swiglu" packs gate and up rows side by side). block: one of the large matrices
        that `formats.weights` is for; else it is in dtype (None: `dtype`).
        """
        names = [names] if isinstance(names, str) else list(names)
        rows = [rows] if isinstance(rows, int) else list(rows)
        if bias is None:
            bias = [name for name in names if self.has(f"{name}.bias")]
        elif isinstance(bias, bool):
            bias = names if bias else []
        biases = None
        if bias:
            biases = self.new_vector(sum(rows), name=names[0]).zero_()
            for name, part in zip(names, biases.split(rows), strict=True):
                if name in bias:
                    self.fill(f"{name}.bias", part)
        if block and self.formats.weights in QUANTISED:
            format = self.formats.weights
            weight = self.to_quantise(names, rows, k)
        else:
            format = format_of(dtype or self.dtype)
            weight = self._read(self.staged(sum(rows), k, dtype=dtype), names, rows)
        self.keeps_packed(weight.shape, format, activation=activation, name=names[0])
        if not self.dry:
            weight = ops.pack_linear(weight, format=format, activation=activation)
        return Linear(weight, biases)

    def check_buffer(self, name: str, expected: Tensor, *, tolerance: float = 1e-2) -> None:
        """A buffer that is computed here in float32: the one stored (often rounded) must agree."""
        key = self.prefix + name
        self._ledger.used.add(key)
        if self.dry or self.device.type == "meta":
            self._check(key, tuple(expected.shape))
            return
        if key not in self.source or self.source.shape(key) != tuple(expected.shape):
            return
        stored = torch.empty(expected.shape, dtype=torch.float32)
        self.source.fill(key, stored)
        error = float((stored - expected).abs().max() / expected.abs().max())
        if not error <= tolerance:
            raise CheckpointError(
                f"{self.source.what}: {key} differs from the computed buffer by {error:.2g} of "
                f"its maximum; expected {_head(expected)}, got {_head(stored)}"
            )


def _head(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.4g}" for v in values.flatten()[:3].tolist()) + ", ...]"


def assemble(
    source: Source,
    build: Callable[[Weights], T],
    *,
    device: Any = "cpu",
    dtype: torch.dtype | None = None,
    weights: str | None = None,
    activation_dtype: torch.dtype | None = None,
    strict: bool = True,
) -> tuple[T, LoadReport]:
    """Build a module from a checkpoint, whose every tensor must be used and every gap filled.

    weights, dtype, activation_dtype: see `formats.resolve`. Raises CheckpointError with the
    keys that are missing, unexpected or misshapen; strict=False lists them in the report instead,
    and a parameter that could not be filled is zero.
    """
    device = torch.device(device)
    formats = resolve(weights, dtype, device, activation_dtype)
    try:
        _, ledger = rehearse(source, build, device=device, formats=formats)
        report = ledger.report
        if not report.clean:
            message = f"{source.what} does not fit its config: {report.summary()}"
            if strict:
                raise CheckpointError(message)
            warnings.warn(message, stacklevel=3)
        view = Weights(source, device=device, formats=formats, dry=False, ledger=ledger)
        with torch.no_grad():
            return build(view), report
    finally:
        source.close()


def rehearse(
    source: Source, build: Callable[[Weights], T], *, device: torch.device, formats: Formats
) -> tuple[T, _Ledger]:
    """Build it dry: nothing is read, tensors are on the meta device, and the ledger is filled."""
    ledger = _Ledger(LoadReport())
    built = build(Weights(source, device=device, formats=formats, dry=True, ledger=ledger))
    for name in source.names():
        if name not in ledger.used:
            ledger.report.unexpected[name] = source.shape(name)
    return built, ledger
