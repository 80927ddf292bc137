"""The events of a profile as slices of stages, and their sums.

On the host a stage's time is that of our ops, of PyTorch's operators outside our ops, and the rest: Python. Time
outside our ops is the stage's gap. The time between stages is a stage of its own, so that the times add up to the
request's. On a GPU a kernel belongs to the stage that launched it, and the device's idle time before it is that
stage's device gap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MingError
from .stages import OTHER, STAGES

REQUEST, STAGE, OP = "mingcore.request", "mingcore.stage:", "mingcore.op:"
_HOST = ("user_annotation", "cpu_op")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Slice:
    """An interval: kind "stage", "op" (ours), "torch" (an operator of PyTorch) or "kernel" (on the GPU).

    Times in microseconds since the start of the request. top: directly in its stage; ours: of a kernel, launched by
    one of our ops; call: the op's cost and backend.
    """

    stage: str
    kind: str
    name: str
    start_us: float
    end_us: float
    top: bool = True
    ours: bool = False
    call: dict[str, Any] | None = None

    @property
    def us(self) -> float:
        return self.end_us - self.start_us


@dataclass(frozen=True)
class Stage:
    """The sums of one stage. ms = ours_ms + gap_ms; torch_ms is a part of the gap.

    launches: kernels on a GPU; on a CPU calls of our ops and of PyTorch's operators outside them. nbytes, flops: the
    minimum of its ops (their cases.py); gbs: those bytes over the time, in 1e9 bytes per second. device_ms,
    device_gap_ms: time of kernels, and idle time before them; None without a GPU.
    """

    stage: str
    calls: int
    ms: float
    ours_ms: float
    torch_ms: float
    gap_ms: float
    launches: int
    nbytes: int
    flops: int
    gbs: float
    device_ms: float | None = None
    device_gap_ms: float | None = None


@dataclass(frozen=True)
class Timeline:
    """The host's nested events of the request's thread, and the GPU's kernels."""

    seconds: float
    host: tuple[Slice, ...]
    kernels: tuple[Slice, ...]

    @classmethod
    def of(cls, events: Iterable[dict[str, Any]]) -> Timeline:
        """From the events of a Chrome trace of one REQUEST."""
        events = [event for event in events if event.get("ph") == "X"]
        request = next(e for e in events if e["name"] == REQUEST and e.get("cat") == _HOST[0])
        thread, begin = (request["pid"], request["tid"]), request["ts"]
        end = begin + request["dur"]
        mine = [
            e
            for e in events
            if e.get("cat") in _HOST and (e["pid"], e["tid"]) == thread and e is not request and begin <= e["ts"] < end
        ]
        host = tuple(_nested(sorted(mine, key=lambda e: (e["ts"], -e["dur"])), begin, end))
        return cls(request["dur"] / 1e6, host, tuple(_kernels(events, host, begin)))

    def slices(self, calls: Sequence[dict[str, Any]]) -> tuple[Slice, ...]:
        """All slices, our ops with their entries of `calls` (in order), and the time between stages."""
        ops = [s.name for s in self.host if s.kind == "op"]
        if ops != [call["op"] for call in calls]:
            raise MingError("profile: the request was not the same in two runs; give it a seed")
        counted = iter(calls)
        known = [
            Slice(s.stage, s.kind, s.name, s.start_us, s.end_us, s.top, s.ours, next(counted)) if s.kind == "op" else s
            for s in self.host
        ]
        return (*known, *self._between(), *self.kernels)

    def _between(self) -> Iterator[Slice]:
        reached = 0.0
        for s in self.host:
            if s.kind == "stage" and s.top:
                if s.start_us > reached:
                    yield Slice(OTHER, "stage", "host", reached, s.start_us)
                reached = s.end_us
        if self.seconds * 1e6 > reached:
            yield Slice(OTHER, "stage", "host", reached, self.seconds * 1e6)


def _nested(events: Iterable[dict[str, Any]], begin: float, limit: float) -> Iterator[Slice]:
    """Slices of sorted events; a child is cut at the end of its parent, which rounding may move."""
    above: list[tuple[float, str, str]] = []  # end, kind, stage
    for event in events:
        start = event["ts"]
        while above and above[-1][0] <= start:
            above.pop()
        end = min(start + event["dur"], above[-1][0] if above else limit)
        stage = above[-1][2] if above else OTHER
        name, kind = event["name"], "torch"
        top = not any(k != "stage" for _, k, _ in above)
        if event["cat"] == _HOST[0]:
            if name.startswith(STAGE):
                own, _, name = name.removeprefix(STAGE).partition(":")
                kind, top, stage = "stage", not above, stage if above else own
            elif name.startswith(OP):
                kind, name = "op", name.removeprefix(OP)
            else:
                continue
        above.append((end, kind, stage))
        yield Slice(stage, kind, name, start - begin, end - begin, top)


def _kernels(events: Sequence[dict[str, Any]], host: Sequence[Slice], begin: float) -> Iterator[Slice]:
    """Kernels in the order of execution, each in the stage that launched it."""
    launched = {
        e["args"]["correlation"]: e["ts"] - begin
        for e in events
        if e.get("cat") in _LAUNCHES and "correlation" in e.get("args", {})
    }
    stages, ops = ([s for s in host if s.kind == kind and s.top] for kind in ("stage", "op"))
    for e in sorted((e for e in events if e.get("cat") in _KERNELS), key=lambda e: e["ts"]):
        at = launched.get(e.get("args", {}).get("correlation"))
        stage, op = _around(stages, at), _around(ops, at)
        found = (stage or op).stage if stage or op else OTHER
        start = e["ts"] - begin
        yield Slice(found, "kernel", e["name"], start, start + e["dur"], ours=op is not None)


def _around(slices: Sequence[Slice], at: float | None) -> Slice | None:
    """The slice that spans a time, of sorted slices that do not overlap, or None."""
    if at is None:
        return None
    index = bisect_right(slices, at, key=lambda s: s.start_us) - 1
    return slices[index] if index >= 0 and at <= slices[index].end_us else None


def summed(slices: Sequence[Slice], calls: Iterable[tuple[str, int, int]]) -> tuple[Stage, ...]:
    """One row per stage that ran, in the order of STAGES. calls: (stage, bytes, operations)."""
    nbytes, flops = dict.fromkeys((*STAGES, OTHER), 0), dict.fromkeys((*STAGES, OTHER), 0)
    for stage, moved, made in calls:
        nbytes[stage] += moved
        flops[stage] += made
    kernels = [s for s in slices if s.kind == "kernel"]
    idle = dict.fromkeys((*STAGES, OTHER), 0.0)
    reached = kernels[0].start_us if kernels else 0.0
    for kernel in kernels:
        idle[kernel.stage] += max(0.0, kernel.start_us - reached)
        reached = max(reached, kernel.end_us)
    found = []
    for stage in (*STAGES, OTHER):
        own = [s for s in slices if s.stage == stage and s.top]
        spans, ours, torch, on_gpu = (
            [s.us for s in own if s.kind == kind] for kind in ("stage", "op", "torch", "kernel")
        )
        if not (spans or ours or on_gpu):
            continue
        ms = sum(spans) / 1e3
        row = {
            "calls": len(spans),
            "ms": ms,
            "ours_ms": sum(ours) / 1e3,
            "torch_ms": sum(torch) / 1e3,
            "gap_ms": ms - sum(ours) / 1e3,
            "launches": len(on_gpu) if kernels else len(ours) + len(torch),
        }
        busy_ms = sum(on_gpu) / 1e3
        over_ms = busy_ms if kernels else ms
        row |= {"nbytes": nbytes[stage], "flops": flops[stage]}
        row["gbs"] = nbytes[stage] / over_ms / 1e6 if over_ms else 0.0
        if kernels:
            row |= {"device_ms": busy_ms, "device_gap_ms": idle[stage] / 1e3}
        found.append(Stage(stage, **row))
    return tuple(found)
