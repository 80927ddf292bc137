"""From a checkpoint's tensors to a module's, each read once and straight into its place.

A module asks a `Weights` view for what it needs, by name and expected shape. It is built twice:
first dry, on the meta device, so that every missing, unexpected or misshapen tensor is known
before a byte is read; then for real. Files are read by offset in blocks of a few MiB and converted
on the way, so beside the weights themselves only one block, or the one matrix that is being
packed, is ever in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops
from ..errors import CheckpointError
from .headers import Reader, TensorInfo, read_headers
from .layers import Linear

__all__ = ["DictTensors", "FileTensors", "LoadReport", "Weights", "assemble", "read_headers"]

BLOCK_BYTES = 8 << 20
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
            *(
                f"unexpected key {name} of shape {list(shape)}"
                for name, shape in self.unexpected.items()
            ),
        ]

    def summary(self) -> str:
        lines = self.lines()
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        return "; ".join(lines[:SHOWN]) + more


class FileTensors:
    """The tensors of a checkpoint's files, as `read_headers` found them."""

    def __init__(self, infos: Mapping[str, TensorInfo], what: str):
        self.infos, self.what = infos, what
        self._reader = Reader()
        self._staging: Tensor | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.infos

    def names(self) -> Iterable[str]:
        return self.infos

    def shape(self, name: str) -> tuple[int, ...]:
        return self.infos[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.infos[name].dtype

    def fill(self, name: str, dest: Tensor, position: int = 0) -> bool:
        """Read `name` into `dest` of the same shape; whether all values are finite."""
        info = self.infos[name]
        if not dest.is_contiguous():
            finite = True
            stride = info.nbytes // dest.shape[0]
            for i, part in enumerate(dest):
                finite &= self.fill_flat(info, part, position + i * stride)
            return finite
        return self.fill_flat(info, dest, position)

    def fill_flat(self, info: TensorInfo, dest: Tensor, position: int) -> bool:
        flat, width = dest.view(-1), info.dtype.itemsize
        direct = dest.dtype == info.dtype and dest.device.type == "cpu"
        step = BLOCK_BYTES // width
        finite = True
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step]
            block = part if direct else self._stage(part.numel(), info.dtype)
            self._reader.read(info, position + start * width, _bytes(block))
            if not direct:
                block = block.to(dest.dtype)
                part.copy_(block)
            finite &= _is_finite(block)
        return finite

    def _stage(self, count: int, dtype: torch.dtype) -> Tensor:
        if self._staging is None:
            self._staging = torch.empty(BLOCK_BYTES, dtype=torch.uint8)
        return self._staging[: count * dtype.itemsize].view(dtype)

    def close(self) -> None:
        self._reader.close()
        self._staging = None


class DictTensors:
    """Tensors that are in memory already: a state dict."""

    def __init__(self, tensors: Mapping[str, Tensor], what: str):
        self.tensors, self.what = tensors, what

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def fill(self, name: str, dest: Tensor) -> bool:
        dest.copy_(self.tensors[name].detach())
        return _is_finite(dest)

    def close(self) -> None:
        pass


def _bytes(block: Tensor) -> memoryview:
    return memoryview(block.view(torch.uint8).numpy())


def _is_finite(values: Tensor) -> bool:
    # A sum makes no temporary; only where it is not finite itself does it take a closer look.
    total = values.sum(dtype=torch.float32 if values.dtype == torch.float16 else None)
    return bool(total.isfinite()) or bool(values.isfinite().all())


@dataclass
class _Ledger:
    report: LoadReport
    used: set[str] = field(default_factory=set)


class Weights:
    """A view of a checkpoint below a prefix, on behalf of one module.

    `dtype` is that of matrices, `activation_dtype` that of vectors (biases, norms) and of what
    flows between the modules. Tensors come on `device`, or on the meta device when `dry`.
    """

    def __init__(
        self,
        source: FileTensors | DictTensors,
        *,
        device: torch.device,
        dtype: torch.dtype,
        activation_dtype: torch.dtype,
        dry: bool,
        ledger: _Ledger,
        prefix: str = "",
    ):
        self.source, self.device, self.dtype = source, device, dtype
        self.activation_dtype, self.dry = activation_dtype, dry
        self._ledger, self.prefix = ledger, prefix

    def sub(self, name: str) -> Weights:
        """The view one level further down."""
        return Weights(
            self.source,
            device=self.device,
            dtype=self.dtype,
            activation_dtype=self.activation_dtype,
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

    def new(self, *shape: int) -> Tensor:
        """An unfilled matrix (or a stack of them)."""
        return torch.empty(shape, dtype=self.dtype, device="meta" if self.dry else self.device)

    def new_vector(self, *shape: int) -> Tensor:
        """An unfilled vector (or a stack of them) in the activations' dtype."""
        device = "meta" if self.dry else self.device
        return torch.empty(shape, dtype=self.activation_dtype, device=device)

    def fill(self, name: str, dest: Tensor) -> None:
        """Read a tensor into `dest`; its shape must be that of `dest`, save for ones in front."""
        key, expected = self.prefix + name, tuple(dest.shape)
        self._ledger.used.add(key)
        if self.dry:
            self._check(key, expected)
        elif key not in self.source or self.source.shape(key) != expected:
            dest.zero_()  # listed in the report: only strict=False comes here
        elif not self.source.fill(key, dest):
            self._ledger.report.not_finite.append(key)
            warnings.warn(
                f"{self.source.what}: {key} holds values that are not finite "
                f"(NaN or infinity, as {dest.dtype})",
                stacklevel=2,
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
                f"{self.source.what}: {key} must hold float32, bfloat16 or float16, got "
                f"{self.source.dtype(key)}"
            )

    def vector(self, name: str, n: int) -> Tensor:
        """A norm's weight or the like: [n] in the activations' dtype."""
        dest = self.new_vector(n)
        self.fill(name, dest)
        return dest

    def matrix(self, names: Sequence[str], rows: Sequence[int], k: int) -> Tensor:
        """Matrices [rows[i], k] one below the other: [sum(rows), k]."""
        dest, start = self.new(sum(rows), k), 0
        for name, count in zip(names, rows, strict=True):
            self.fill(f"{name}.weight", dest[start : start + count])
            start += count
        return dest

    def linear(
        self,
        names: str | Sequence[str],
        rows: int | Sequence[int],
        k: int,
        *,
        bias: bool | Collection[str] | None = True,
        activation: str | None = None,
    ) -> Linear:
        """One linear layer, packed for its device, out of one or several below each other.

        bias: all have one, none has, only those named have one, or (None) those that the
        checkpoint gives one; where some lack it theirs is zero. activation: what will be fused
        into it ("swiglu" packs gate and up rows side by side).
        """
        names = [names] if isinstance(names, str) else list(names)
        rows = [rows] if isinstance(rows, int) else list(rows)
        if bias is None:
            bias = [name for name in names if self.has(f"{name}.bias")]
        elif isinstance(bias, bool):
            bias = names if bias else []
        biases = None
        if bias:
            device = "meta" if self.dry else self.device
            biases = torch.zeros(sum(rows), dtype=self.activation_dtype, device=device)
            for name, part in zip(names, biases.split(rows), strict=True):
                if name in bias:
                    self.fill(f"{name}.bias", part)
        weight = self.matrix(names, rows, k)
        if not self.dry:
            weight = ops.pack_linear(weight, activation=activation)
        return Linear(weight, biases)

    def check_buffer(self, name: str, expected: Tensor, *, tolerance: float = 1e-2) -> None:
        """A buffer that is computed here in float32: the one stored (often rounded) must agree."""
        key = self.prefix + name
        self._ledger.used.add(key)
        if self.dry:
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
    source: FileTensors | DictTensors,
    build: Callable[[Weights], T],
    *,
    device: Any = "cpu",
    dtype: torch.dtype,
    activation_dtype: torch.dtype | None = None,
    strict: bool = True,
) -> tuple[T, LoadReport]:
    """Build a module from a checkpoint, whose every tensor must be used and every gap filled.

    dtype: of the matrices. activation_dtype: None means float32 on a CPU (16-bit weights are
    widened on the way into its registers), and dtype elsewhere. Raises CheckpointError with the
    keys that are missing, unexpected or misshapen; strict=False lists them in the report instead,
    and a parameter that could not be filled is zero.
    """
    if dtype not in _FLOATS[:3]:
        raise CheckpointError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    device = torch.device(device)
    if activation_dtype is None:
        activation_dtype = torch.float32 if device.type == "cpu" else dtype
    ledger = _Ledger(LoadReport())
    kinds = {"device": device, "dtype": dtype, "activation_dtype": activation_dtype}
    try:
        build(Weights(source, dry=True, ledger=ledger, **kinds))
        report = ledger.report
        for name in source.names():
            if name not in ledger.used:
                report.unexpected[name] = source.shape(name)
        if not report.clean:
            message = f"{source.what} does not fit its config: {report.summary()}"
            if strict:
                raise CheckpointError(message)
            warnings.warn(message, stacklevel=3)
        with torch.no_grad():
            return build(Weights(source, dry=False, ledger=ledger, **kinds)), report
    finally:
        source.close()
