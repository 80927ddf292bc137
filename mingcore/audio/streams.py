"""Streams that are still being made: resampled and regrouped as they come, ended by Ctrl-C."""

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

    Each piece comes as soon as its chunk; with another rate (soxr HQ) it is later by the filter,
    and the rest comes at the end. Raises InputError for a bad rate at once, for a bad chunk when
    it comes.
    """
    if isinstance(rate, bool) or not isinstance(rate, int) or not MIN_RATE <= rate <= MAX_RATE:
        raise InputError(f"sample_rate: must be {MIN_RATE} to {MAX_RATE} Hz, got {rate!r}")
    filtering = None
    if rate != new_rate:
        import soxr

        filtering = soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
    return _pieces(chunks, filtering)


def _pieces(chunks: Iterable[Any], filtering: Any) -> Iterator[np.ndarray]:
    for index, chunk in enumerate(chunks):
        samples = _checked(chunk, index)
        yield samples if filtering is None else filtering.resample_chunk(samples)
    if filtering is not None:
        yield filtering.resample_chunk(np.zeros(0, np.float32), last=True)


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


def regrouped(chunks: Iterable[np.ndarray], least: int, most: int) -> Iterator[np.ndarray]:
    """The same rows in pieces of a multiple of `least`, at most `most`; the last may be shorter.

    A piece goes out as soon as its rows are there. A model then takes whole steps, however the
    rows dribble in.
    """
    held: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        if count >= least:
            rows = np.concatenate(held)
            due = count // least * least
            yield from (rows[i : min(i + most, due)] for i in range(0, due, most))
            held, count = [rows[due:]], count - due
    if count:
        yield np.concatenate(held)


class Background:
    """A file descriptor that is read ahead by a thread of its own, up to `most` bytes.

    A microphone does not wait: what comes while a model loads or computes is kept here, not in a
    pipe of 64 KB. Beyond `most` the writer waits. Raises OSError where the descriptor does.
    """

    PIECE = 1 << 15

    def __init__(self, descriptor: int, most: int = 64 << 20):
        self._queue: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()
        self._room, self._held, self._over = threading.Condition(), 0, False
        self._most, self._start = most, b""
        # os.read and not a buffered file: a daemon thread must hold no lock when Python ends
        threading.Thread(target=self._read, args=(descriptor,), daemon=True).start()

    def _read(self, descriptor: int) -> None:
        while True:
            with self._room:
                self._room.wait_for(lambda: self._held < self._most)
            try:
                data: bytes | OSError = os.read(descriptor, self.PIECE)
            except OSError as error:
                data = error
            with self._room:
                self._held += 0 if isinstance(data, OSError) else len(data)
            self._queue.put(data)
            if isinstance(data, OSError) or not data:
                return

    def read1(self, most: int) -> bytes:
        """At least one byte, at most `most`; none at the end."""
        if not self._start and not self._over:
            data = self._queue.get()
            if isinstance(data, OSError):
                self._over = True
                raise data
            self._start, self._over = data, not data
            with self._room:
                self._held -= len(data)
                self._room.notify()
        data, self._start = self._start[:most], self._start[most:]
        return data

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end; they stay."""
        ahead = b""
        while len(ahead) < count and (more := self.read1(count - len(ahead))):
            ahead += more
        self._start = ahead + self._start
        return ahead

    def read(self) -> bytes:
        """All that is left."""
        return b"".join(iter(lambda: self.read1(self.PIECE), b""))


class Ending:
    """Chunks of a live source until it ends, turns out to be damaged, or Ctrl-C ends it.

    What came before is then finished properly by whoever reads the chunks; `settle` raises what
    ended them. A second Ctrl-C is an ordinary one. To be used as a context, around everything.
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

    def settle(self) -> None:
        """Raises the InputError or KeyboardInterrupt that ended the chunks, if one did."""
        if self._error is not None:
            raise self._error
        if self._interrupted:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        again, self._interrupted = self._interrupted, True
        # in the middle of a computation it only asks for the end
        if self._waiting or again:
            raise KeyboardInterrupt

    def __enter__(self) -> Ending:
        # a command started with `&` in a script ignores Ctrl-C, and shall go on doing so
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            if threading.current_thread() is threading.main_thread():
                self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
