"""The thread on which an engine lives: other threads hand it calls, and it wakes for them."""

from __future__ import annotations

import atexit
import contextvars
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from ..errors import ClosedError
from .engine import Engine
from .isolation import ErrorIsolation
from .sequence import OutputSink, Sequence

logger = logging.getLogger(__name__)


_live: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread inside PyTorch while the interpreter goes down would abort the process: wait for its step."""
    workers = list(_live)
    for worker in workers:
        worker.close()
    for worker in workers:
        worker.join()


class Worker:
    """Runs `engine` until it is closed, at the latest when the interpreter exits. Its methods may be called from any
    thread.

    The thread sees the context variables of who made it, so `ops.use_backend` holds there too.
    """

    def __init__(self, engine: Engine):
        self._engine: Engine | None = engine
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._awake, self._closing, self._finished = False, False, False
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="mingcore", daemon=True)
        self._thread.start()
        _live.add(self)

    @property
    def closed(self) -> bool:
        """Whether it takes nothing more."""
        return self._closing

    def submit(self, work: Any, sink: OutputSink) -> Ticket:
        """Hands `work` to the engine; what cannot be served ends in its sink."""
        ticket = Ticket()
        self._call(lambda: ticket.submit(self, self._engine, work, sink))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Its slot is freed, after the step that is being computed; its sink may be gone."""
        self._call(lambda: ticket.cancel(self._engine))

    def wake(self) -> None:
        """Something changed that the engine may have waited for: a sink has room again."""
        with self._changed:
            self._awake = True
            self._changed.notify()

    def close(self) -> None:
        """Ends every request with ClosedError; does not wait."""
        self._closing = True
        self.wake()

    def join(self) -> None:
        """Waits for the thread to end."""
        self._thread.join()

    def _call(self, call: Callable[[], None]) -> None:
        with self._changed:
            if not self._finished:
                self._calls.append(call)
                self._awake = True
                self._changed.notify()
                return
        call()  # it finds no engine

    def _run(self) -> None:
        device = self._engine.model.llm.device
        # the current GPU is a thread's own
        here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with here, ErrorIsolation(self._break):
            while not self._closing:
                with self._changed:
                    self._changed.wait_for(lambda: self._awake)
                    self._awake = False
                while not self._closing:
                    self._run_calls()
                    if not self._engine.step() and not self._calls:
                        break
            self._end(ClosedError("the request: AsyncMingAudio was closed before it was complete"))

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _end(self, error: Exception) -> None:
        self._closing = True
        with self._changed:
            self._finished = True
        self._run_calls()  # those that came too late get the same error
        for sequence in self._engine.sequences:
            sequence.finished = True
            sequence.sink.end(error)
        self._engine = None  # and with it the memory of its slots

    def _break(self, error: Exception) -> None:
        """The engine itself failed: nobody is left waiting."""
        logger.error("the engine failed: %s: %s", type(error).__name__, error)
        broken = ClosedError(f"the request: the engine failed ({type(error).__name__}: {error})")
        broken.__cause__ = error
        self._end(broken)


class Ticket:
    """A request that was handed over; the engine's thread alone looks inside."""

    _sequence: Sequence | None = None

    def submit(self, worker: Worker, engine: Engine | None, work: Any, sink: OutputSink) -> None:
        if worker.closed:
            sink.end(ClosedError("the request: AsyncMingAudio is closed"))
        else:
            self._sequence = engine.submit(work, sink)

    def cancel(self, engine: Engine | None) -> None:
        if self._sequence is not None and not self._sequence.finished:
            engine.cancel(self._sequence)
