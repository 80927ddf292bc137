"""Typed reads from one mapping of a JSON file, with errors that name the key in full."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError

log = logging.getLogger(__name__)
_MISSING = object()


class Section:
    """One mapping of the file: typed reads that remember which keys were asked for."""

    def __init__(self, name: str, values: Any):
        if not isinstance(values, Mapping):
            raise CheckpointError(f"config: {name} must be a mapping, got {values!r}")
        self.name, self.values = name, values
        self.seen: set[str] = set()

    def get(self, key: str, kind: type, default: Any = _MISSING) -> Any:
        self.seen.add(key)
        value = self.values.get(key)
        if value is None:
            if default is _MISSING:
                state = "null" if key in self.values else "missing"
                raise CheckpointError(f"config: {self.name}.{key} is required and {state}")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CheckpointError(f"config: {self.name}.{key} must be of type {kind.__name__}, got {value!r}")
        return value

    def sub(self, key: str) -> Section:
        self.seen.add(key)
        name = f"{self.name}.{key}" if self.name else key
        if key not in self.values:
            raise CheckpointError(f"config: {name} is required and missing")
        return Section(name, self.values[key])

    def done(self) -> None:
        unknown = sorted(set(self.values) - self.seen)
        if unknown:
            log.debug("config: ignored in %s: %s", self.name or "the top level", ", ".join(unknown))


def require(ok: bool, message: str) -> None:
    if not ok:
        raise CheckpointError(f"config: {message}")


def positive(section: str, obj: Any, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        require(value > 0, f"{section}.{name} must be positive, got {value}")


def positive_values(section: str, **values: int) -> None:
    for name, value in values.items():
        require(value > 0, f"{section}.{name} must be positive, got {value}")
