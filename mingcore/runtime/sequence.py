"""Sequences: what the engine keeps of each request, and of the steps that it has launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from .host_copy import AsyncHostCopy
from .prefill import Prefill
from .requests import Request
from .step import PatchOutput
from .task import Segment, Task


class OutputSink(Protocol):
    """Where a request's results go; `end` is the last call."""

    def room(self) -> int:
        """How many more results would be taken now."""

    def put(self, piece: Any) -> None:
        """A piece of the result."""

    def end(self, error: BaseException | None) -> None:
        """It is complete, or what went wrong."""


@dataclass(frozen=True)
class Call:
    """Work that is no request: a function, called between two steps, whose result goes out."""

    function: Callable[[], Any]


@dataclass(eq=False)
class Sequence:
    """A request in the engine.

    prefill: its prompt, while that is run. started: it is done, and the sequence writes text (`writing`) or makes
    patches. forced: the token that is fed to the LLM between the two. unbatched: the engine in which it runs by itself.
    """

    work: Request | Task | Call
    sink: OutputSink
    task: Task | None = None
    segment: Segment | None = None
    prefill: Prefill | None = None
    started: bool = False
    writing: bool = False
    forced: int | None = None
    patches: int = 0
    row: int | None = None
    in_flight: int = 0
    finished: bool = False
    unbatched: Any = None

    def pause(self) -> None:
        """Its clock stops."""
        if self.task is not None:
            self.task.meter.pause()

    def resume(self) -> None:
        """Its clock goes on, unless it has finished."""
        if self.task is not None and not self.finished:
            self.task.meter.resume()


@dataclass(frozen=True)
class PatchEntry:
    """A sequence's patch in a step: the row it was in then, and where its noise stood before."""

    row: int
    sequence: Sequence
    noise_mark: Any


@dataclass(frozen=True)
class TokenEntry:
    """A sequence's token in a step: the row it was in then, and whether the token was forced."""

    row: int
    sequence: Sequence
    forced: bool


@dataclass
class InFlightStep:
    """A step that was launched. n: the rows it computes. sound, text: its results on their way to the host.

    Of a sequence by itself also the flow head's inputs (hidden, history) and the patch on the device. alive: how many
    rows go on, once the results are there.
    """

    n: int
    patches: list[PatchEntry]
    tokens: list[TokenEntry]
    sound: AsyncHostCopy | None = None
    text: AsyncHostCopy | None = None
    inputs: tuple[Tensor, Tensor] | None = None
    output: PatchOutput | None = None
    alive: int = 0
    ended: list[Sequence] = field(default_factory=list)

    @property
    def rows(self) -> tuple[set[int], set[int]]:
        """Rows with a patch, rows with a token."""
        return {entry.row for entry in self.patches}, {entry.row for entry in self.tokens}
