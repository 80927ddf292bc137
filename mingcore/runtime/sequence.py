"""What the engine keeps of requests: where each one stands, and steps that were launched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from .prefill import Context
from .requests import Request
from .run import Run, Segment
from .step import Landing


class Outlet(Protocol):
    """Where a request's results go; `end` is the last call, and nothing follows it."""

    def room(self) -> int:
        """How many more pieces would be taken now."""

    def put(self, piece: Any) -> None:
        """A piece of the result."""

    def end(self, error: BaseException | None) -> None:
        """It is complete, or what went wrong."""


@dataclass(eq=False)
class Job:
    """What is in the engine: a request, or an iterator that is taken one piece at a time.

    filling: the prompt that is being run; `due`: the size of its next piece. begun: it is done, and
    text is written (`writing`) or patches are made. given: the token that comes between the two.
    """

    work: Request | Iterator[Any]
    outlet: Outlet
    run: Run | None = None
    segment: Segment | None = None
    filling: Iterator[int | Context] | None = None
    due: int = 0
    begun: bool = False
    writing: bool = False
    given: int | None = None
    row: int | None = None
    in_flight: int = 0
    over: bool = False


@dataclass
class Flight:
    """A step that was launched: its patches, with where each one's draws stood before it, and its
    tokens, with whether each was given to the model."""

    patches: list[tuple[int, Job, Any]]
    tokens: list[tuple[int, Job, bool]]
    sound: Landing | None
    text: Landing | None
