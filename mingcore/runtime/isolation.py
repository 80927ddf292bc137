"""Error isolation: where the error of one sequence stops, so that it does not reach the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ErrorIsolation:
    """A context: an Exception raised inside is handed to `handle` and goes no further.

    KeyboardInterrupt and the like pass.
    """

    handle: Callable[[Exception], None]
    failed: bool = field(default=False, init=False)

    def __enter__(self) -> ErrorIsolation:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        self.handle(error)
        return True
