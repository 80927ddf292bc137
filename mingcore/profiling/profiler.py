"""Profiles a request: counts its bytes, measures its time, and records its events."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from ..ops._core.cases import Cost, cost
from ..ops._core.layouts import tensors_in
from ..ops._core.op import watching
from .stages import OTHER, observed_ops, staged
from .timeline import OP, REQUEST, STAGE, Slice, Stage, Timeline, summed

Request = Callable[[Any], Iterable[Any]]


@dataclass(frozen=True)
class Call:
    """One call of an op: its minimum of bytes and operations (`ops/<family>/cases.py`), and the backend that ran."""

    stage: str
    op: str
    backend: str
    nbytes: int
    flops: int


@dataclass(frozen=True)
class Profile:
    """seconds: of the unprofiled run; profiled_seconds: of the run under the profiler, as are `stages` and `slices`.
    calls: of ops, in order."""

    seconds: float
    profiled_seconds: float
    stages: tuple[Stage, ...]
    slices: tuple[Slice, ...]
    calls: tuple[Call, ...]
    device: str

    def as_dict(self) -> dict[str, Any]:
        """Times and stages, for JSON."""
        return {
            "device": self.device,
            "seconds": self.seconds,
            "profiled_seconds": self.profiled_seconds,
            "stages": [asdict(stage) for stage in self.stages],
        }


def profile(ming: Any, request: Request, *, nvtx: Any = None) -> Profile:
    """Runs `request(ming)`, an iterable of results, three times and measures its stages.

    It must be repeatable: with a fixed seed, so that every run makes the same calls. nvtx: an object with `range_push`
    and `range_pop`; by default PyTorch's where the model is on a GPU. Raises MingError when the calls differ.
    """
    device = ming.model.llm.device
    on_gpu = device.type == "cuda"
    counter = _CostCounter()
    with observed_ops(counter):
        _run(_with_model(ming, counter), request, device)
    seconds = _run(ming, request, device)
    ranges = _Ranges(nvtx or (torch.cuda.nvtx if on_gpu else None))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with ExitStack() as open_:
        open_.enter_context(observed_ops(ranges))
        copied = _with_model(ming, ranges)
        recorder = open_.enter_context(torch.profiler.profile(activities=activities))
        with ranges.range(REQUEST):
            _run(copied, request, device)
    calls = tuple(counter.calls)
    timeline = Timeline.of(_events(recorder))
    slices = timeline.slices([asdict(call) for call in calls])
    stages = summed(slices, [(call.stage, call.nbytes, call.flops) for call in calls])
    return Profile(seconds, timeline.seconds, stages, slices, calls, str(device))


def _with_model(ming: Any, observer: Any) -> Any:
    copied = copy.copy(ming)
    copied.model = staged(ming.model, observer)
    return copied


def _run(ming: Any, request: Request, device: torch.device) -> float:
    """Seconds until the request has ended, device synchronised."""
    began = time.perf_counter()
    for _ in request(ming):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _events(recorder: Any) -> list[dict[str, Any]]:
    """The events of torch.profiler's Chrome trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


class _CostCounter:
    """Records the cost of every op call, and the backend that ran."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._open: list[str] = []
        self._depth = 0

    @contextmanager
    def stage(self, stage: str, name: str) -> Iterator[None]:
        self._open.append(stage)
        try:
            yield
        finally:
            self._open.pop()

    def op(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        if self._depth:  # called by another op
            return function(*args, **kwargs)
        self._depth += 1
        try:
            backends: list[str] = []
            with watching(lambda op, implementation, args: backends.append(implementation.backend)):
                result = function(*args, **kwargs)
        finally:
            self._depth -= 1
        spent, _ = call_cost(name, function, args, kwargs, result)
        backend = backends[0] if backends else "reference"
        stage = self._open[0] if self._open else OTHER
        self.calls.append(Call(stage, name, backend, spent.nbytes, spent.flops))
        return result


def call_cost(name: str, function: Callable, args: tuple, kwargs: dict, result: Any) -> tuple[Cost, dict[str, Any]]:
    """The cost of a call of an op by its `cases.py`, and its arguments by name."""
    given = signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    named = {key: value for key, value in given.arguments.items() if key != "backend"}
    outputs = (named["out"],) if named.get("out") is not None else tuple(tensors_in(result))
    return cost(name, named, outputs), named


class _Ranges:
    """Opens a range of torch.profiler, and an NVTX range with `nvtx`, for every stage and op."""

    def __init__(self, nvtx: Any):
        self._nvtx = nvtx
        self._depth = 0

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        if self._nvtx is not None:
            self._nvtx.range_push(name)
        try:
            with record_function(name):
                yield
        finally:
            if self._nvtx is not None:
                self._nvtx.range_pop()

    def stage(self, stage: str, name: str) -> Any:
        return self.range(f"{STAGE}{stage}:{name}")

    def op(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        if self._depth:
            return function(*args, **kwargs)
        self._depth += 1
        try:
            with self.range(OP + name):
                return function(*args, **kwargs)
        finally:
            self._depth -= 1
