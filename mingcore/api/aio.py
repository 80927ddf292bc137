"""The public class for asyncio: many requests at once, in the background of an event loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ClosedError
from ..results import Speech, Transcript, Voice
from ..runtime.engine import SLOT_SECONDS, Engine
from ..runtime.params import whole as whole_number
from ..runtime.sequence import Call
from ..runtime.worker import Ticket, Worker
from .batch import Attempts, combine
from .ming_audio import MingAudio

UNBOUNDED = 1 << 30


class AsyncMingAudio:
    """A MingAudio for many concurrent requests; use it as `async with`, or `aclose` it.

    Continuous batching: up to `slots` requests for speech, recognition and edits share each step, one patch or token
    of each per step; requests join and leave between steps, further ones wait in order. Each result is that of the
    request alone (`runtime.engine.Engine` says when bit for bit). The codec, and recordings too long for a slot, run
    between steps, one piece at a time.

    ahead: chunks that may wait for a stream's consumer; with more, that request alone pauses (backpressure).
    requests: how many may be open at once; further calls wait until one has ended. preparing: how many may have their
    text or recording prepared at once, each in a thread of its own; a source that blocks holds up itself alone.
    slot_seconds: seconds of speech that a slot's caches hold at first (memory). Cancelling a task or closing a stream
    frees its slot; an error ends its own request alone. An engine that was not closed is closed when the interpreter
    exits. Raises InputError for a number out of range.
    """

    def __init__(
        self,
        ming: MingAudio,
        *,
        slots: int = 8,
        ahead: int = 16,
        requests: int = 256,
        preparing: int = 32,
        slot_seconds: float = SLOT_SECONDS,
        batch_invariant: bool = False,
    ):
        self.ming = ming
        self.ahead = whole_number("ahead", ahead, 1, 100_000)
        self._open = asyncio.Semaphore(whole_number("requests", requests, 1, 1_000_000))
        self._preparing = asyncio.Semaphore(whole_number("preparing", preparing, 1, 10_000))
        engine = Engine(ming.model, slots, seconds=slot_seconds, batch_invariant=bool(batch_invariant))
        self._worker = Worker(engine)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        device: Any = None,
        dtype: Any = None,
        weights: str | None = None,
        kernels: str | Path | None = None,
        *,
        adapter: Any = None,
        revision: str | None = None,
        strict: bool = True,
        **options: Any,
    ) -> AsyncMingAudio:
        """`MingAudio.from_pretrained`, which blocks; `options` are those of the class."""
        found = {"adapter": adapter, "revision": revision, "strict": strict}
        ming = MingAudio.from_pretrained(name_or_path, device, dtype, weights, kernels, **found)
        return cls(ming, **options)

    @property
    def sample_rate(self) -> int:
        """Of all output, in Hz."""
        return self.ming.sample_rate

    async def tts(self, text: str, voice: Any = None, *, retries: int = 0, **options: Any) -> Speech:
        """`MingAudio.tts`."""
        attempts = Attempts(retries, options)
        while (chosen := attempts.next_options()) is not None:
            request = partial(self.ming.speech_request, text, voice, **chosen)
            attempts.add(combine(await self._all(request)))
        return attempts.best()

    def tts_stream(self, text: str, voice: Any = None, **options: Any) -> Stream:
        """`MingAudio.tts_stream`; an error in the request is raised with the first chunk."""
        return Stream(self, lambda: self.ming.speech_request(text, voice, **options), self.ahead)

    async def transcribe(self, audio: Any, instruction: str | None = None, **options: Any) -> Transcript:
        """`MingAudio.transcribe`."""
        return combine(await self._all(lambda: self.ming.understand_request(audio, instruction, **options)))

    def transcribe_stream(self, audio: Any, instruction: str | None = None, **options: Any) -> Stream:
        """`MingAudio.transcribe_stream`."""
        return Stream(self, lambda: self.ming.understand_request(audio, instruction, **options), self.ahead)

    async def edit(self, audio: Any, instruction: str, **options: Any) -> Speech:
        """`MingAudio.edit`."""
        return combine(await self._all(lambda: self.ming.edit_request(audio, instruction, **options)))

    def edit_stream(self, audio: Any, instruction: str, **options: Any) -> Stream:
        """`MingAudio.edit_stream`."""
        return Stream(self, lambda: self.ming.edit_request(audio, instruction, **options), self.ahead)

    async def voice(self, audio: Any, transcript: str = "", *, seed: int = 0) -> Voice:
        """`MingAudio.voice`."""
        return await self._call(lambda: self.ming.voice(audio, transcript, seed=seed))

    async def encode(self, audio: Any, **options: Any) -> np.ndarray:
        """`MingAudio.encode`."""
        return await self._call(lambda: self.ming.encode(audio, **options))

    async def decode(self, latents: Any) -> Speech:
        """`MingAudio.decode`."""
        return await self._call(lambda: self.ming.decode(latents))

    async def aclose(self) -> None:
        """Ends every request with ClosedError and frees all memory but the model's weights."""
        self._worker.close()
        await asyncio.get_running_loop().run_in_executor(None, self._worker.join)

    async def __aenter__(self) -> AsyncMingAudio:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.aclose()

    async def _all(self, make: Callable[[], Any]) -> list[Any]:
        async with Stream(self, make, UNBOUNDED) as pieces:
            return [piece async for piece in pieces]

    async def _call(self, function: Callable[[], Any]) -> Any:
        (result,) = await self._all(lambda: Call(function))
        return result


class Stream(AsyncIterator[Any]):
    """The pieces of one request as they are made. The request is submitted when the first piece is awaited.

    It has one consumer: a second that awaits a piece at the same time gets RuntimeError. Awaiting a piece may be
    cancelled (`asyncio.wait_for`) and done again: nothing is lost. Closed by `aclose`, by `async with`, or by garbage
    collection.
    """

    def __init__(self, owner: AsyncMingAudio, make: Callable[[], Any], ahead: int):
        self._owner, self._make, self._ahead = owner, make, ahead
        self._sink: _QueueSink | None = None
        self._ticket: Ticket | None = None
        self._starting: asyncio.Task[None] | None = None
        self._over = self._taking = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        if self._taking:
            raise RuntimeError("stream: another consumer awaits its next piece; a stream has one")
        if self._over:
            raise StopAsyncIteration
        self._taking = True
        try:
            error, piece = await self._next()
        finally:
            self._taking = False
        if piece is not None:
            self._owner._worker.wake()
            return piece
        self._end()
        if error is not None:
            raise error
        raise StopAsyncIteration

    async def _next(self) -> tuple[BaseException | None, Any]:
        if self._starting is None:
            # a task of its own: who waits for the first piece may give up and come back
            self._starting = asyncio.ensure_future(self._start())
        try:
            await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            if self._over:  # closed meanwhile
                raise StopAsyncIteration from None
            raise
        except BaseException:
            self._end()
            raise
        if self._sink is None:  # closed before it was opened
            raise StopAsyncIteration
        return await self._sink.take()

    async def aclose(self) -> None:
        """Cancels the rest of the request and frees its slot."""
        self._end()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._end()

    def __del__(self) -> None:
        self._end()

    async def _start(self) -> None:
        owner, loop = self._owner, asyncio.get_running_loop()
        await owner._open.acquire()
        if self._over:  # closed meanwhile
            owner._open.release()
            return
        self._sink = _QueueSink(loop, self._ahead, owner._open.release)
        if owner._worker.closed:
            raise ClosedError("the request: AsyncMingAudio is closed")
        async with owner._preparing:
            work = await _in_thread(self._make)
        if not self._over:
            self._ticket = owner._worker.submit(work, self._sink)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._starting is not None and not self._starting.done() and not self._starting.get_loop().is_closed():
            self._starting.get_loop().call_soon_threadsafe(self._starting.cancel)
        if self._sink is not None:
            self._sink.close()
        if self._ticket is not None:
            self._owner._worker.cancel(self._ticket)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises, in a thread that nobody waits for: it may block for ever.

    A pool's threads would be joined when the interpreter exits.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Any] = loop.create_future()

    def settle(set_result: Callable[[Any], None], value: Any) -> None:
        if not result.done():
            set_result(value)

    def run() -> None:
        try:
            outcome = result.set_result, function()
        except BaseException as error:  # handed to who awaits it
            outcome = result.set_exception, error
            if not isinstance(error, Exception):
                raise
        finally:
            with suppress(RuntimeError):  # the event loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, *outcome)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="mingcore-prepare", daemon=True).start()
    return await result


class _QueueSink:
    """An output sink: a bounded queue from the engine's thread to the event loop's.

    Each side writes only its own counter, so no lock is needed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, bound: int, release: Callable[[], None]):
        self._loop, self._bound, self._release = loop, bound, release
        self._queue: asyncio.Queue[tuple[BaseException | None, Any]] = asyncio.Queue()
        self._put_count = self._taken_count = 0
        self._closed = False

    def room(self) -> int:
        return self._bound - (self._put_count - self._taken_count)

    def put(self, piece: Any) -> None:
        """Raises RuntimeError when the event loop is closed, which ends the request."""
        self._put_count += 1
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (None, piece))

    def end(self, error: BaseException | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (error, None))

    async def take(self) -> tuple[BaseException | None, Any]:
        """(None, the next piece), or at the end (the error or None, None)."""
        entry = await self._queue.get()
        self._taken_count += 1
        return entry

    def close(self) -> None:
        """The consumer needs no more: another request may be opened."""
        if not self._closed and not self._loop.is_closed():
            self._closed = True
            self._loop.call_soon_threadsafe(self._release)
