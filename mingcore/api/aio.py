"""The public class for asyncio: many requests at once, in the background of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ClosedError
from ..results import Speech, Transcript, Voice
from ..runtime.engine import SLOT_SECONDS, Engine
from ..runtime.params import whole as whole_number
from ..runtime.sequence import Call
from ..runtime.worker import Ticket, Worker
from .batch import combine
from .ming_audio import MingAudio

UNBOUNDED = 1 << 30


class AsyncMingAudio:
    """A MingAudio for many concurrent requests; use it as `async with`, or `aclose` it.

    Continuous batching: up to `slots` requests for speech, recognition and edits share each step, one patch or token
    of each per step; requests join and leave between steps, further ones wait in order. Each result is that of the
    request alone (`runtime.engine.Engine` says when bit for bit). The codec, and recordings too long for a slot, run
    between steps, one piece at a time.

    ahead: chunks that may wait for a stream's consumer; with more, that request alone pauses (backpressure).
    requests: how many may be open at once; further calls wait until one has ended. slot_seconds: seconds of speech
    that a slot's caches hold at first (memory). Cancelling a task or closing a stream frees its slot; an error ends
    its own request alone. Raises InputError for a number out of range.
    """

    def __init__(
        self,
        ming: MingAudio,
        *,
        slots: int = 8,
        ahead: int = 16,
        requests: int = 256,
        slot_seconds: float = SLOT_SECONDS,
        batch_invariant: bool = False,
    ):
        self.ming = ming
        self.ahead = whole_number("ahead", ahead, 1, 100_000)
        self._open = asyncio.Semaphore(whole_number("requests", requests, 1, 1_000_000))
        engine = Engine(ming.model, slots, seconds=slot_seconds, batch_invariant=bool(batch_invariant))
        self._worker = Worker(engine)
        # checks and file reads before a request starts would block the event loop
        self._front = ThreadPoolExecutor(1, "mingcore-front")

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

    async def tts(self, text: str, voice: Any = None, **options: Any) -> Speech:
        """`MingAudio.tts`."""
        return combine(await self._all(lambda: self.ming.speech_request(text, voice, **options)))

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
        self._front.shutdown(wait=False)

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

    Closed by `aclose`, by `async with`, or by garbage collection.
    """

    def __init__(self, owner: AsyncMingAudio, make: Callable[[], Any], ahead: int):
        self._owner, self._make, self._ahead = owner, make, ahead
        self._sink: _QueueSink | None = None
        self._ticket: Ticket | None = None
        self._over = False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        if self._over:
            raise StopAsyncIteration
        if self._sink is None:
            await self._start()
        error, piece = await self._sink.take()
        if piece is not None:
            self._owner._worker.wake()
            return piece
        self._end()
        if error is not None:
            raise error
        raise StopAsyncIteration

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
        sink = self._sink = _QueueSink(loop, self._ahead, owner._open.release)
        try:
            if owner._worker.closed:
                raise ClosedError("the request: AsyncMingAudio is closed")
            work = await loop.run_in_executor(owner._front, self._make)
        except BaseException:
            self._end()
            raise
        if not self._over:
            self._ticket = owner._worker.submit(work, sink)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._sink is not None:
            self._sink.close()
        if self._ticket is not None:
            self._owner._worker.cancel(self._ticket)


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
