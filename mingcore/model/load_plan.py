"""A model as its checkpoint describes it: what it needs, what of that is there, what it will take.

Made from headers alone, in one pass over what the modules declare; reading follows the same plan.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops._core.packing import FORMATS, packed_bytes
from .declared import LoadReport, Reader, read
from .formats import Formats
from .sources import Source

logger = logging.getLogger(__name__)
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
T = TypeVar("T")


class Stored(NamedTuple):
    """A tensor that stays in memory: the prefix of its names, its shape and what it is for.

    packed: a matrix [N, K], or a stack of them, in the form that an op packs.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    packed: bool
    activation: str | None

    def nbytes(self, formats: Formats, device: torch.device) -> int:
        format = formats.of(self.role)
        if not self.packed:
            return math.prod(self.shape) * FORMATS[format].itemsize
        *stack, n, k = self.shape
        return math.prod(stack) * packed_bytes(n, k, format, device.type, swiglu=self.activation == "swiglu")


class Check(NamedTuple):
    """Values that `compare` looks at, and raises for: read as `dtype`, on the CPU."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    compare: Callable[[Tensor], None]


@dataclass
class LoadPlan(Generic[T]):
    """What is read from `source` onto `device`, and how it is kept.

    `model`: the tree that `read` turns into modules. `report`: which tensors fit. `stored`: what
    will stay in memory; folded convolutions are not in it.
    """

    source: Source
    device: torch.device
    formats: Formats
    report: LoadReport = field(default_factory=LoadReport)
    stored: list[Stored] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    model: Any = None

    def needs(self, key: str, shape: tuple[int, ...]) -> None:
        """Takes down that this tensor of this shape is used. Raises CheckpointError for its type."""
        self.used.add(key)
        if key not in self.source:
            self.report.missing[key] = shape
            return
        found = self.source.shape(key)
        if found != shape:
            self.report.mismatched[key] = (shape, found)
        if self.source.dtype(key) not in _FLOATS:
            raise CheckpointError(
                f"{self.source.what}: {key} must hold float32, bfloat16 or float16, got {self.source.dtype(key)}"
            )

    def ignores(self, key: str, why: str) -> None:
        """Takes down that this tensor, if it is there, is known to be unused."""
        if key in self.source:
            self.used.add(key)
            self.report.unused[key] = why

    def complete(self, model: Any) -> None:
        """The description ends here: a tensor that nobody needs is unexpected."""
        self.model = model
        for name in self.source.names():
            if name not in self.used:
                self.report.unexpected[name] = self.source.shape(name)

    def require_complete(self, strict: bool = True) -> None:
        """Raises CheckpointError with the keys that do not fit.

        strict=False: tensors that nothing here uses are skipped, with one warning in the log.
        """
        report, what = self.report, self.source.what
        if report.missing or report.mismatched or (strict and report.unexpected):
            only_unexpected = not (report.missing or report.mismatched)
            hint = "; strict=False (--no-strict) skips tensors that are not used" if only_unexpected else ""
            raise CheckpointError(f"{what} does not fit its config: {report.summary()}{hint}")
        if report.unexpected:
            logger.warning("%s: skipped %s", what, report.skipped())

    def sizes(self, formats: Formats | None = None) -> Counter[tuple[str, str]]:
        """Bytes that stay in memory by (prefix of the names, format); formats: other ones."""
        formats, sizes = formats or self.formats, Counter()
        for stored in self.stored:
            sizes[stored.name, formats.of(stored.role)] += stored.nbytes(formats, self.device)
        return sizes

    def read(self) -> T:
        """Read every tensor into its place and make the modules; on the meta device only the latter.

        Each tensor goes from the file straight into its place, in blocks of a few MiB; beside the
        weights only one block, or the one matrix that is being packed, is ever in memory. Raises
        CheckpointError for values that are not finite and for those that contradict the config.
        """
        reader = Reader(self.source, self.device, self.formats)
        try:
            if self.device.type != "meta":
                self._check_values()
            with torch.no_grad():
                return read(self.model, reader)
        finally:
            self.source.close()

    def _check_values(self) -> None:
        for check in self.checks:
            if check.key in self.source and self.source.shape(check.key) == check.shape:
                stored = torch.empty(check.shape, dtype=check.dtype)
                self.source.fill(check.key, stored)
                check.compare(stored)
