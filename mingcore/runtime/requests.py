"""The kinds of requests, and one by itself; engine.py has many in step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from . import prefill
from .editing import Editing, EditRequest
from .run import Run, TextPlan, to_numpy
from .speaking import Speaking, SpeechRequest
from .understanding import Understanding, UnderstandRequest

REQUESTS = (SpeechRequest, UnderstandRequest, EditRequest)
Request = SpeechRequest | UnderstandRequest | EditRequest

_RUNS = dict(zip(REQUESTS, (Speaking, Understanding, Editing)))


def new_run(model, request: Request) -> Run:
    """The request on its way, at its start."""
    return _RUNS[type(request)](model, request)


def alone(model, request: Request) -> Iterator[Any]:
    """All that a request gives, by itself; None after each piece of a prompt, for those who have
    something else to do meanwhile. Closing it frees the request's memory."""
    run = new_run(model, request)
    for piece in _pieces(model, run):
        run.meter.pause()
        yield piece
        run.meter.resume()
    run.meter.pause()


def _pieces(model, run: Run) -> Iterator[Any]:
    while (segment := run.next()) is not None:
        for context in run.filling(segment):
            if isinstance(context, int):
                yield None
        if segment.text is not None:
            yield from _written(model, run, context, segment.text)
        if segment.limits is None:
            continue
        patches = prefill.speak(model, context, run.noise, run.flow, segment.limits)
        del context
        with closing(patches):
            for patch in patches:
                sound = to_numpy(patch.samples[0])
                yield run.deliver(sound, last=patch.last, stopped=patch.stopped)
                if patch.last:
                    run.heard(patch.latents)


def _written(model, run: Run, context: prefill.Context, plan: TextPlan) -> Iterator[Any]:
    for count, token in enumerate(prefill.write(model, context, plan, run.draws), 1):
        stopped = token in plan.stops
        yield from run.wrote(token, last=stopped or count == plan.most, stopped=stopped)
    if plan.then is not None:
        prefill.feed(model, context, plan.then)


def results(model, request: Request) -> Iterator[Any]:
    """`alone` without its pauses."""
    with closing(alone(model, request)) as pieces:
        for piece in pieces:
            if piece is not None:
                yield piece
