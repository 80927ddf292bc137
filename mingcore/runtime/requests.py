"""The kinds of requests, and the task that each of them becomes."""

from __future__ import annotations

from typing import Any

from .editing import Editing, EditRequest
from .speaking import Speaking, SpeechRequest
from .task import Task
from .understanding import Understanding, UnderstandRequest

REQUESTS = (SpeechRequest, UnderstandRequest, EditRequest)
Request = SpeechRequest | UnderstandRequest | EditRequest

_TASKS = dict(zip(REQUESTS, (Speaking, Understanding, Editing)))


def new_task(model, work: Request | Task) -> Task:
    """The request in progress, at its start; a task is its own."""
    make: Any = _TASKS.get(type(work))
    return work if make is None else make(model, work)
