"""Live streams: resampled and regrouped as they arrive, ended by Ctrl-C."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import InputError
from .files import MAX_RATE, MIN_RATE, to_float


def resampled(chunks: Iterable[Any], rate: int, new_rate: int) -> Iterator[np.ndarray]:
    """Chunks of samples [l], NumPy or PyTorch, float or integer -> [l'] float32 at `new_rate` Hz.

    Each piece follows its chunk at once; with another rate (soxr HQ) it is delayed by the filter, and the rest comes
    at the end. Raises InputError at once for a rate out of range, and for an invalid chunk when it arrives.
    """
    if isinstance(rate, bool) or not isinstance(rate, int) or not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"sample_rate: must be {MIN_RATE} to {MAX_RATE} Hz, got {rate!r}")
    resampler = None
    if rate != new_rate:
        import soxr

        resampler = soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
    return _pieces(chunks, resampler)


def _pieces(chunks: Iterable[Any], resampler: Any) -> Iterator[np.ndarray]:
    for index, chunk in enumerate(chunks):
        samples = _checked(chunk, index)
        yield samples if resampler is None else resampler.resample_chunk(samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _checked(chunk: Any, index: int) -> np.ndarray:
    if hasattr(chunk, "detach"):
        chunk = chunk.detach().cpu()
        # NumPy has no bfloat16
        chunk = chunk.float().numpy() if chunk.is_floating_point() else chunk.numpy()
    name = f"audio: chunk {index}"
    samples = np.asarray(chunk)
    if samples.ndim != 1:
        raise InputError(f"{name} must be samples [l], got {list(samples.shape)}")
    samples = to_float(samples, name)
    if not np.isfinite(samples).all():
        raise InputError(f"{name} holds NaN or infinity")
    return np.ascontiguousarray(samples)


def regrouped(chunks: Iterable[np.ndarray], multiple: int, max_rows: int) -> Iterator[np.ndarray]:
    """The rows of `chunks` in pieces of a multiple of `multiple`, up to `max_rows`; the last may be shorter.

    A piece is yielded as soon as its rows have arrived. So a model takes full steps, whatever the chunks' sizes.
    """
    buffered: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        buffered.append(chunk)
        count += len(chunk)
        if count >= multiple:
            rows = np.concatenate(buffered)
            ready = count // multiple * multiple
            yield from (rows[i : min(i + max_rows, ready)] for i in range(0, ready, max_rows))
            buffered, count = [rows[ready:]], count - ready
    if count:
        yield np.concatenate(buffered)


class ReadAhead:
    """A file descriptor, read by a thread of its own into a buffer of up to `max_bytes`.

    A microphone does not wait: what arrives while a model loads or computes is buffered here, beyond the 64 KB of a
    pipe. When the buffer is full the writer blocks. Reads raise OSError when reading the descriptor does.
    """

    PIECE = 1 << 15

    def __init__(self, descriptor: int, max_bytes: int = 64 << 20):
        self._queue: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()
        self._not_full, self._buffered, self._over = threading.Condition(), 0, False
        self._max_bytes, self._start = max_bytes, b""
        # os.read, not a buffered file: a daemon thread must not hold its lock when the interpreter exits
        threading.Thread(target=self._read, args=(descriptor,), daemon=True).start()

    def _read(self, descriptor: int) -> None:
        while True:
            with self._not_full:
                self._not_full.wait_for(lambda: self._buffered < self._max_bytes)
            try:
                data: bytes | OSError = os.read(descriptor, self.PIECE)
            except OSError as error:
                data = error
            with self._not_full:
                self._buffered += 0 if isinstance(data, OSError) else len(data)
            self._queue.put(data)
            if isinstance(data, OSError) or not data:
                return

    def read1(self, max_bytes: int) -> bytes:
        """1 to `max_bytes` bytes; none at the end of the stream."""
        if not self._start and not self._over:
            data = self._queue.get()
            if isinstance(data, OSError):
                self._over = True
                raise data
            self._start, self._over = data, not data
            with self._not_full:
                self._buffered -= len(data)
                self._not_full.notify()
        data, self._start = self._start[:max_bytes], self._start[max_bytes:]
        return data

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end, without consuming them."""
        ahead = b""
        while len(ahead) < count and (more := self.read1(count - len(ahead))):
            ahead += more
        self._start = ahead + self._start
        return ahead

    def read(self) -> bytes:
        """The rest of the stream."""
        return b"".join(iter(lambda: self.read1(self.PIECE), b""))


class DeferredEnd:
    """Yields the chunks of a live source until it ends, raises InputError, or Ctrl-C is pressed.

    The consumer of the chunks then finishes its output as at a regular end; `reraise` raises the error afterwards.
    A second Ctrl-C interrupts at once. A context manager, to be entered around the whole command.
    """

    def __init__(self) -> None:
        self._waiting = self._interrupted = False
        self._error: InputError | None = None
        self._previous: Any = None

    def chunks(self, source: Iterable[Any]) -> Iterator[Any]:
        source = iter(source)
        while not self._interrupted:
            self._waiting = True
            try:
                chunk = next(source, None)
            except InputError as error:
                self._error = error
                return
            except KeyboardInterrupt:
                self._interrupted = True
                return
            finally:
                self._waiting = False
            if chunk is None:
                return
            yield chunk

    def reraise(self) -> None:
        """Raises the InputError or KeyboardInterrupt that ended the chunks, if one did."""
        if self._error is not None:
            raise self._error
        if self._interrupted:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        again, self._interrupted = self._interrupted, True
        # during a computation the first Ctrl-C only ends the source
        if self._waiting or again:
            raise KeyboardInterrupt

    def __enter__(self) -> DeferredEnd:
        # a background command of a script (`&`) ignores SIGINT: leave that as it is
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            if threading.current_thread() is threading.main_thread():
                self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
