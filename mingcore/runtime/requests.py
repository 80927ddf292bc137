"""The kinds of requests, and how each is run."""

from __future__ import annotations

from .editing import Editing, EditRequest
from .speaking import Speaking, SpeechRequest
from .understanding import Understanding, UnderstandRequest
from .work import Run

REQUESTS = (SpeechRequest, UnderstandRequest, EditRequest)
Request = SpeechRequest | UnderstandRequest | EditRequest

_RUNS = dict(zip(REQUESTS, (Speaking, Understanding, Editing)))


def new_run(model, request: Request) -> Run:
    """The request on its way, at its start."""
    return _RUNS[type(request)](model, request)
