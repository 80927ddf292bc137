"""What is to be made of a checkpoint's tensors, as data: declared first, read later.

A module's `declare` gives a tree of these. A `LoadPlan` is made while the tree is declared, from
headers alone; `read` then walks it once, in the order in which it is written down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops._core.packing import FORMATS, QUANTISED
from .formats import Formats
from .parts import feature_of
from .sources import Source

SHOWN, SKIPPED_SHOWN = 8, 5
T = TypeVar("T")


@dataclass
class LoadReport:
    """What did not fit between a checkpoint and the model, and what is known to be unused."""

    missing: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unexpected: dict[str, tuple[int, ...]] = field(default_factory=dict)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    merged: dict[str, int] = field(default_factory=dict)  # adapter -> how many tensors it changed

    @property
    def clean(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def lines(self) -> list[str]:
        """One line for each tensor that does not fit: its key, the shape expected and found."""
        return [
            *(f"missing key {name} of shape {list(shape)}{_needed_by(name)}" for name, shape in self.missing.items()),
            *(
                f"{name} must be {list(expected)}, got {list(found)}"
                for name, (expected, found) in self.mismatched.items()
            ),
            *(f"unexpected key {name} of shape {list(shape)}" for name, shape in self.unexpected.items()),
        ]

    def skipped(self) -> str:
        """The unexpected tensors on one line: the first five by name, the others counted."""
        names = list(self.unexpected)
        more = f" and {len(names) - SKIPPED_SHOWN} more" if len(names) > SKIPPED_SHOWN else ""
        what = "1 unexpected tensor" if len(names) == 1 else f"{len(names)} unexpected tensors"
        return f"{what}: {', '.join(names[:SKIPPED_SHOWN])}{more}"

    def summary(self) -> str:
        lines = self.lines()
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        return "; ".join(lines[:SHOWN]) + more


def _needed_by(name: str) -> str:
    feature = feature_of(name)
    return f" (needed by {feature})" if feature else ""


class Reader:
    """Tensors on a device, filled from a source. On the meta device nothing is read."""

    def __init__(self, source: Source, device: torch.device, formats: Formats):
        self.source, self.device, self.formats = source, device, formats
        self._shared: dict[int, Any] = {}

    def dtype(self, role: str, keys: Sequence[str]) -> torch.dtype:
        """Of what a tensor is read into: its format's, or as `keys` are stored if it is quantised.

        So quantised formats are made of the values as stored, not of a rounded copy of them.
        """
        format = self.formats.of(role)
        if format not in QUANTISED:
            return FORMATS[format]
        found = [self.source.dtype(key) for key in keys if key in self.source]
        wide = self.formats.dtype if not found else found[0]
        for dtype in found:
            wide = torch.promote_types(wide, dtype)
        return wide if wide in (torch.float32, torch.bfloat16, torch.float16) else torch.float32

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def fill(self, key: str, dest: Tensor, entry: int | None = None) -> None:
        """Read a tensor, or one entry of a stack, into `dest` of its shape.

        Raises CheckpointError for values that are not finite: they would make every result NaN.
        """
        if dest.device.type == "meta" or self.source.fill(key, dest, entry):
            return
        narrow = "; what overflows float16 fits bfloat16 and float32" if dest.dtype == torch.float16 else ""
        raise CheckpointError(
            f"{self.source.what}: {key} holds values that are not finite (NaN or infinity, as {dest.dtype}){narrow}"
        )

    def once(self, node: Shared[T]) -> T:
        if id(node) not in self._shared:
            self._shared[id(node)] = node.declared.read(self)
        return self._shared[id(node)]


class Declared(ABC, Generic[T]):
    """A value that `read` makes."""

    @abstractmethod
    def read(self, reader: Reader) -> T: ...


class Build(Declared[T]):
    """make(*args, **keywords), where what is declared among the arguments is read before, in order."""

    def __init__(self, make: Callable[..., T], *args: Any, **keywords: Any):
        self.make, self.args, self.keywords = make, args, keywords

    def read(self, reader: Reader) -> T:
        return self.make(*read(self.args, reader), **read(self.keywords, reader))


class Shared(Declared[T]):
    """What several modules hold: it is read once."""

    def __init__(self, declared: Declared[T]):
        self.declared = declared

    def read(self, reader: Reader) -> T:
        return reader.once(self)


class Piece(NamedTuple):
    """A tensor of the checkpoint, or one entry of it, at a place of the tensor it is read into."""

    key: str
    place: tuple[int | slice, ...] = ()
    entry: int | None = None


@dataclass(frozen=True)
class Stacked(Declared[Tensor]):
    """One tensor made of pieces; role: see `formats.ROLES`.

    stored_as: keys that say in which type it is read where it is quantised; () are all pieces.
    padded: no piece covers some of it, which is zeros.
    """

    shape: tuple[int, ...]
    role: str
    pieces: tuple[Piece, ...]
    stored_as: tuple[str, ...] = ()
    padded: bool = False

    @property
    def keys(self) -> list[str]:
        return [piece.key for piece in self.pieces]

    def read(self, reader: Reader) -> Tensor:
        dest = reader.empty(self.shape, reader.dtype(self.role, self.stored_as or self.keys))
        if self.padded:
            dest.zero_()
        self.fill(reader, dest)
        return dest

    def fill(self, reader: Reader, dest: Tensor) -> None:
        """Into room that there is. Raises CheckpointError for values that are not finite."""
        for piece in self.pieces:
            reader.fill(piece.key, dest[piece.place], piece.entry)


def read(value: Any, reader: Reader) -> Any:
    """What is declared in lists, tuples and mappings, read in order; anything else as it is."""
    if isinstance(value, Declared):
        return value.read(reader)
    if isinstance(value, dict):
        return {name: read(each, reader) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(read(each, reader) for each in value)
    return value
