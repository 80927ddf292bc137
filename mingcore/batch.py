"""Many texts spoken in step, on the caller's thread; `aio.py` does it in the background."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import InputError
from .results import Speech
from .runtime.engine import Engine
from .runtime.slots import check_slots
from .runtime.speaking import SpeechRequest


class _Outlet:
    """Puts what a request gives, and at last its error or None, into a common queue."""

    def __init__(self, index: int, queue: deque[tuple[int, Any]]):
        self._index, self._queue = index, queue

    def room(self) -> int:
        # a round gives each request one piece, and comes only when all are taken
        return 1 << 30

    def put(self, piece: Speech) -> None:
        self._queue.append((self._index, piece))

    def end(self, error: BaseException | None) -> None:
        self._queue.append((self._index, error))


def together(
    ming,
    requests: Sequence[str | Mapping[str, Any]],
    *,
    slots: int = 8,
    batch_invariant: bool = False,
    errors: str = "raise",
    **options: Any,
) -> Iterator[tuple[int, Speech | BaseException | None]]:
    """Speaks `requests` up to `slots` at a time -> (which one, a chunk), as they are made.

    A request is a text, or a mapping of the arguments of `ming.tts`, which win over `options`.
    After its last chunk each request gives None. errors: "raise" ends everything at the first
    error, before anything starts where it is an InputError; with "return" the error takes the
    place of None, and the others go on. batch_invariant: see `runtime.engine.Engine`. Closing the
    iterator frees all memory. Raises InputError.
    """
    if errors not in ("raise", "return"):
        raise InputError(f"errors: must be raise or return, got {errors!r}")
    if isinstance(requests, (str, Mapping)) or not isinstance(requests, Iterable):
        raise InputError(f"requests: must be a list of texts or mappings, got {requests!r}")
    slots = check_slots(slots)
    work: list[SpeechRequest | InputError] = []
    for index, request in enumerate(requests):
        try:
            work.append(_request(ming, index, request, options))
        except InputError as error:
            if errors == "raise":
                raise
            work.append(error)
    return _spoken(ming, work, slots, bool(batch_invariant), errors == "raise")


def _request(ming, index: int, request: Any, options: dict[str, Any]) -> SpeechRequest:
    if isinstance(request, str):
        request = {"text": request}
    if not isinstance(request, Mapping) or "text" not in request:
        raise InputError(f"requests[{index}]: must be a text or a mapping with one, got {request}")
    try:
        return ming.speech_request(**{**options, **request})
    except InputError as error:
        raise InputError(f"requests[{index}]: {error}") from None


def _spoken(
    ming, work: list[SpeechRequest | InputError], slots: int, batch_invariant: bool, strict: bool
) -> Iterator[tuple[int, Any]]:
    queue: deque[tuple[int, Any]] = deque()
    sound = [(i, request) for i, request in enumerate(work) if isinstance(request, SpeechRequest)]
    queue.extend((i, error) for i, error in enumerate(work) if isinstance(error, InputError))
    if not sound:
        yield from queue
        return
    # in that mode the number of slots is a shape that kernels see: not the batch's to choose
    slots = slots if batch_invariant else min(slots, len(sound))
    engine = Engine(ming.model, slots, batch_invariant=batch_invariant, graphs=False)
    try:
        for index, request in sound:
            engine.submit(request, _Outlet(index, queue))
        while queue or engine.tick():
            while queue:
                index, piece = queue.popleft()
                if strict and isinstance(piece, BaseException):
                    raise piece
                yield index, piece
    finally:
        engine.close()


def whole_batch(ming, requests: Sequence[str | Mapping[str, Any]], **options: Any) -> list[Any]:
    """All of `together`, put together: a Speech for each request, or its error."""
    parts: dict[int, list[Speech]] = {}
    failed: dict[int, BaseException] = {}
    for index, piece in together(ming, requests, **options):
        if isinstance(piece, BaseException):
            failed[index] = piece
        elif piece is not None:
            parts.setdefault(index, []).append(piece)
    every = sorted({*parts, *failed})
    return [failed[i] if i in failed else whole(parts[i]) for i in every]


def whole(chunks: Iterable[Speech]) -> Speech:
    """The chunks of a stream as one Speech."""
    parts = list(chunks)
    texts = [part.text for part in parts if part.text is not None]
    return Speech(
        np.concatenate([part.samples for part in parts]),
        parts[-1].sample_rate,
        parts[-1].stats,
        "".join(texts) if texts else None,
    )
