"""Batched requests on the caller's thread; `aio.py` runs them in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..results import Speech, Transcript
from ..runtime.engine import Engine
from ..runtime.model_runner import check_slots
from ..runtime.params import whole
from ..runtime.requests import Request

Piece = Speech | Transcript
# task -> the argument that a request must have, and the method that makes a request of its arguments
TASKS = {
    "tts": ("text", "speech_request"),
    "transcribe": ("audio", "understand_request"),
    "edit": ("audio", "edit_request"),
}


class _SharedSink:
    """An output sink: a request's pieces, then its error or None, go to a queue that all requests share."""

    def __init__(self, index: int, queue: deque[tuple[int, Any]]):
        self._index, self._queue = index, queue

    def room(self) -> int:
        # never full: a step makes one piece per request and runs only when the queue is empty
        return 1 << 30

    def put(self, piece: Piece) -> None:
        self._queue.append((self._index, piece))

    def end(self, error: BaseException | None) -> None:
        self._queue.append((self._index, error))


def together(
    ming,
    requests: Sequence[Any],
    *,
    task: str = "tts",
    slots: int = 8,
    batch_invariant: bool = False,
    errors: str = "raise",
    **options: Any,
) -> Iterator[tuple[int, Piece | BaseException | None]]:
    """Runs `requests`, up to `slots` at a time -> (the request's index, a piece), as they are made.

    A request is a text (for "transcribe" and "edit": audio), or a mapping of the arguments of the method that `task`
    names; they take precedence over `options`. Each request ends with (index, None). errors: "raise" ends everything
    at the first error, an InputError before anything starts; with "return" the error takes the place of None, and the
    other requests continue. batch_invariant: see `runtime.engine.Engine`. Closing the iterator frees all memory.
    Raises InputError.
    """
    if task not in TASKS:
        raise InputError(f"task: must be one of {', '.join(TASKS)}, got {task!r}")
    if errors not in ("raise", "return"):
        raise InputError(f"errors: must be raise or return, got {errors!r}")
    if isinstance(requests, (str, bytes, Mapping)) or not isinstance(requests, Iterable):
        subject = TASKS[task][0]
        raise InputError(f"requests: must be a list, each {subject} or a mapping with it, got {requests!r}")
    slots = check_slots(slots)
    checked: list[Request | InputError] = []
    for index, request in enumerate(requests):
        try:
            checked.append(_request(ming, task, index, request, options))
        except InputError as error:
            if errors == "raise":
                raise
            checked.append(error)
    return _run(ming, checked, slots, bool(batch_invariant), errors == "raise")


def _request(ming, task: str, index: int, request: Any, options: dict[str, Any]) -> Request:
    subject, make = TASKS[task]
    if isinstance(request, str) or (subject == "audio" and not isinstance(request, Mapping)):
        request = {subject: request}
    if not isinstance(request, Mapping) or subject not in request:
        raise InputError(f"requests[{index}]: must be {subject} or a mapping with it, got {request}")
    try:
        return getattr(ming, make)(**{**options, **request})
    except InputError as error:
        raise InputError(f"requests[{index}]: {error}") from None


def _run(
    ming, checked: list[Request | InputError], slots: int, batch_invariant: bool, strict: bool
) -> Iterator[tuple[int, Any]]:
    queue: deque[tuple[int, Any]] = deque()
    valid = [(i, request) for i, request in enumerate(checked) if not isinstance(request, InputError)]
    queue.extend((i, error) for i, error in enumerate(checked) if isinstance(error, InputError))
    if not valid:
        yield from queue
        return
    # batch-invariant: the number of slots is a shape of the kernels and must not depend on the batch
    slots = slots if batch_invariant else min(slots, len(valid))
    engine = Engine(ming.model, slots, batch_invariant=batch_invariant, graphs=False)
    try:
        for index, request in valid:
            engine.submit(request, _SharedSink(index, queue))
        while queue or engine.step():
            while queue:
                index, piece = queue.popleft()
                if strict and isinstance(piece, BaseException):
                    raise piece
                yield index, piece
    finally:
        engine.close()


def run_batch(ming, requests: Sequence[Any], **options: Any) -> list[Any]:
    """The results of `together`: a Speech or Transcript for each request, or its error."""
    parts: dict[int, list[Piece]] = {}
    failed: dict[int, BaseException] = {}
    for index, piece in together(ming, requests, **options):
        if isinstance(piece, BaseException):
            failed[index] = piece
        elif piece is not None:
            parts.setdefault(index, []).append(piece)
    indices = sorted({*parts, *failed})
    return [failed[i] if i in failed else combine(parts[i]) for i in indices]


class Attempts:
    """Speech, and where it is suspect spoken again with the next seed, up to `retries` times. Raises InputError."""

    def __init__(self, retries: int, options: Mapping[str, Any]):
        self._retries, self._options = whole("retries", retries, 0, 100), options
        self._made: list[Speech] = []

    def next_options(self) -> dict[str, Any] | None:
        """Of the next attempt; None when there is none to make."""
        if not self._made:
            return dict(self._options)
        last = self._made[-1].stats
        if not last.suspect or len(self._made) > self._retries:
            return None
        return {**self._options, "seed": last.seed + 1}

    def add(self, speech: Speech) -> None:
        self._made.append(speech)

    def best(self) -> Speech:
        """The first that is not suspect, else the one with the fewest reasons, the earliest of these."""
        best = min(self._made, key=lambda each: len(each.stats.suspect or ()))
        best.stats.attempts = len(self._made)
        return best


def combine(pieces: Iterable[Any]) -> Any:
    """The pieces of a stream as one Speech or one Transcript."""
    parts = list(pieces)
    texts = [part.text for part in parts if part.text is not None]
    text, last = "".join(texts) if texts else None, parts[-1]
    if isinstance(last, Transcript):
        return Transcript(text, last.stats, last.language)
    samples = np.concatenate([part.samples for part in parts])
    spans = next((part.spans for part in parts if part.spans is not None), None)
    return Speech(samples, last.sample_rate, last.stats, text, spans)
