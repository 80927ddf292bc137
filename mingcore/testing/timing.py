"""Timing on a machine that is shared with other work.

CPU: candidates are interleaved within a round, so that whatever slows the machine slows all of them; a comparison is
the median of the per-round ratios, with its spread. GPU: calls are captured in CUDA graphs, whose replays are timed by
events, interleaved too. Rotating through enough sets of inputs to exceed the last-level cache makes a measurement
cold; one set makes it warm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

CACHE_MULTIPLE = 4  # the inputs of a cold rotation are this many times the cache


@dataclass(frozen=True)
class Spread:
    """A median with the 10th and 90th percentile around it."""

    median: float
    low: float
    high: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Raises ValueError without values."""
        if not values:
            raise ValueError("Spread: values must not be empty")
        ordered = sorted(values)
        last = len(ordered) - 1
        low, high = ordered[round(0.1 * last)], ordered[round(0.9 * last)]
        return Spread(median(ordered), low, high, len(ordered))

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.rounds)

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "p10": self.low, "p90": self.high, "rounds": self.rounds}


@dataclass(frozen=True)
class Comparison:
    """Seconds per call of several candidates, round by round."""

    samples: dict[str, list[float]]

    def time_s(self, name: str) -> Spread:
        return Spread.of(self.samples[name])

    def speedup(self, name: str, over: str) -> Spread:
        """How many times faster `name` is than `over`: the spread of the per-round ratios."""
        pairs = zip(self.samples[over], self.samples[name], strict=True)
        return Spread.of([slow / fast for slow, fast in pairs])

    @property
    def fastest(self) -> str:
        return min(self.samples, key=lambda name: self.time_s(name).median)


def rotate(function: Callable[..., Any], sets: Sequence[Any]) -> Callable[[], Any]:
    """A call of `function` with the next of `sets` each time; a mapping is passed as keywords."""
    if not sets:
        raise ValueError("rotate: sets must not be empty")
    calls = [_bound(function, arguments) for arguments in sets]
    state = {"next": 0}

    def call() -> Any:
        i = state["next"]
        state["next"] = i + 1 if i + 1 < len(calls) else 0
        return calls[i]()

    call.period = len(calls)
    return call


def _bound(function: Callable[..., Any], arguments: Any) -> Callable[[], Any]:
    if isinstance(arguments, dict):
        return lambda: function(**arguments)
    return lambda: function(*arguments)


def sets_for(set_bytes: int, cache_bytes: int, limit_bytes: int = 4 << 30) -> int:
    """The number of sets of `set_bytes` that make a rotation cold; 1 if one set is large enough.

    At most as many as fit in `limit_bytes`, and at most 512.
    """
    wanted = -(-CACHE_MULTIPLE * cache_bytes // max(set_bytes, 1)) + 1
    if set_bytes >= CACHE_MULTIPLE * cache_bytes:
        wanted = 1
    return max(1, min(wanted, limit_bytes // max(set_bytes, 1), 512))


@contextmanager
def threads(n: int | None) -> Iterator[int]:
    """Within the block PyTorch, and mingcore with it, uses `n` threads; None changes nothing. Yields the number."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def interleaved(
    candidates: dict[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    sample_s: float = 5e-3,
    warmup: int = 2,
    budget_s: float | None = None,
    num_threads: int | None = None,
) -> Comparison:
    """Time callables on the CPU, interleaved.

    Each sample repeats its call until about `sample_s` has passed (at least once, and at least
    once around a rotation); the order is reversed in every other round. At least three rounds are
    made, and no further one begins after `budget_s` seconds.
    """
    if not candidates:
        raise ValueError("interleaved: candidates must not be empty")
    with threads(num_threads):
        repeats = {name: _calibrate(call, sample_s, warmup) for name, call in candidates.items()}
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        began = time.perf_counter()
        for i in range(max(rounds, 3)):
            if i >= 3 and budget_s is not None and time.perf_counter() - began > budget_s:
                break
            names = list(candidates)
            for name in reversed(names) if i % 2 else names:
                call, n = candidates[name], repeats[name]
                start = time.perf_counter()
                for _ in range(n):
                    call()
                samples[name].append((time.perf_counter() - start) / n)
    return Comparison(samples)


def _calibrate(call: Callable[[], Any], sample_s: float, warmup: int) -> int:
    for _ in range(max(warmup, 1)):
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
    n = max(1, round(sample_s / max(once, 1e-9)))
    period = getattr(call, "period", 1)
    return -(-n // period) * period if n > 1 else 1


def graph_interleaved(
    candidates: dict[str, Callable[[], Any]],
    *,
    rounds: int = 20,
    sample_s: float = 2e-3,
    warmup: int = 3,
    budget_s: float | None = None,
) -> Comparison:
    """Time callables on the current GPU by replaying CUDA graphs, interleaved.

    Each candidate is captured once: as many calls as fill `sample_s`, in whole rotations, one
    after the other in one graph. Samples are event times around one replay. Candidates must be
    capturable: no host synchronisation, nothing compiled at the first call (warm-up does it).
    """
    if not torch.cuda.is_available():
        raise RuntimeError("graph_interleaved: needs a CUDA device, found none")
    graphs = {name: _capture(call, sample_s, warmup) for name, call in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    began = time.perf_counter()
    for i in range(max(rounds, 3)):
        if i >= 3 and budget_s is not None and time.perf_counter() - began > budget_s:
            break
        names = list(graphs)
        for name in reversed(names) if i % 2 else names:
            graph, calls = graphs[name]
            samples[name].append(_replay_s(graph.replay) / calls)
    return Comparison(samples)


def events_interleaved(
    candidates: dict[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    sample_s: float = 2e-3,
    warmup: int = 2,
    budget_s: float | None = None,
) -> Comparison:
    """Time callables on the current GPU by events, in turns, without graphs: for those that wait
    for the device. Gaps between launches count, as they do for their callers."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    repeats = {}
    for name, call in candidates.items():
        event_s(call, max(warmup, 1))
        repeats[name] = max(1, min(round(sample_s / max(event_s(call), 1e-7)), 200))
    began = time.perf_counter()
    for i in range(max(rounds, 3)):
        if i >= 3 and budget_s is not None and time.perf_counter() - began > budget_s:
            break
        names = list(candidates)
        for name in reversed(names) if i % 2 else names:
            samples[name].append(event_s(candidates[name], repeats[name]))
    return Comparison(samples)


def event_s(call: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of device time for one of `repeats` calls, launch gaps included."""
    return _replay_s(lambda: [call() for _ in range(repeats)]) / repeats


def _replay_s(replay: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def _capture(call: Callable[[], Any], sample_s: float, warmup: int) -> tuple[torch.cuda.CUDAGraph, int]:
    period = getattr(call, "period", 1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(max(warmup, 1)):
            call()
        # device time of a call, so that the host's launch cost does not shorten the graph
        once = max(_replay_s(lambda: [call() for _ in range(period)]) / period, 1e-7)
        calls = max(1, min(round(sample_s / once), 2000))
        calls = -(-calls // period) * period
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph, calls
