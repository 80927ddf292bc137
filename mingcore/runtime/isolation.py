"""Where an error of one request stops, so that it does not reach the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Fault:
    """A context: what goes wrong inside is handed to `then`, and goes no further.

    Interrupts and the like do.
    """

    then: Callable[[Exception], None]
    happened: bool = field(default=False, init=False)

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self.happened = True
        self.then(error)
        return True
