"""Runs requests through the engine: first audio, time per patch, gaps, throughput, memory.

Playback is assumed to begin with a request's first chunk. A chunk that arrives after the audio before it has been
played is an underrun; later audio is delayed by that silence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..runtime.engine import Engine
from ..runtime.model_runner import check_slots
from ..runtime.params import FlowParams
from ..runtime.speaking import SpeechRequest
from ..runtime.task import patch_seconds

VOICE_SECONDS = 3.0
TRANSCRIPT = "This is how I sound when I read a sentence to you."
TEXT = (
    "The morning train was late again, and nobody on the platform knew whether to wait or to "
    "walk the two miles into town."
)
MIN_STEADY = 8  # patches of the full batch


@dataclass
class TimingSink:
    """An output sink without a bound that records when each piece arrived."""

    submitted: float
    times: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    error: BaseException | None = None

    def room(self) -> int:
        return 1 << 30

    def put(self, piece: Any) -> None:
        self.times.append(time.perf_counter())
        self.samples.append(piece.samples.size)

    def end(self, error: BaseException | None) -> None:
        self.error = error


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 (the median), p95 and p99 (nearest rank), the maximum, and the number of values."""
    ordered = sorted(values)
    at = {q: ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in (95, 99)}
    return {"p50": median(ordered), "p95": at[95], "p99": at[99], "max": ordered[-1], "count": len(ordered)}


def new_request(model, seed: int, patches: int) -> SpeechRequest:
    """A request for exactly `patches` patches, after 3 s of a random voice."""
    config = model.config
    frames = round(VOICE_SECONDS / patch_seconds(config)) * config.patch_frames
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, frames, config.latent_dim, generator=generator)
    seconds = patches * patch_seconds(config)
    return SpeechRequest(
        ((TEXT, seconds),), latents.to(model.llm.device), TRANSCRIPT, FlowParams(), seed, seconds, seconds
    )


def first_audio(model, rounds: int) -> dict[str, Any]:
    """ms from submission to first chunk, one request at a time."""
    engine = _engine(model, 1, 1)
    _run(engine, [new_request(model, 1000, 1)])  # warm-up
    waits = []
    for i in range(rounds):
        (sink,) = _run(engine, [new_request(model, i, 1)])
        waits.append(1e3 * (sink.times[0] - sink.submitted))
    engine.close()
    return percentiles(waits)


def serve(model, batch: int, seconds: float) -> dict[str, Any]:
    """`batch` concurrent requests, submitted together, each of `seconds` of audio or slightly more.

    patch_ms: between two chunks of a request while all requests are generating and none joins. throughput: seconds of
    audio per second of the run, prompts included; steady_throughput: of the part with the full batch.
    """
    check_slots(batch)
    config = model.config
    # one request joins per step: the first must still be active when the last has joined
    patches = max(math.ceil(seconds / patch_seconds(config)), batch + MIN_STEADY)
    with Peak(model.llm.device) as peak:
        engine = _engine(model, batch, patches)
        _run(engine, [new_request(model, 1000 + i, 2) for i in range(batch)])
        sinks = _run(engine, [new_request(model, i, patches) for i in range(batch)])
        engine.close()
        del engine
    rate = config.sample_rate
    begun = max(sink.times[0] for sink in sinks)
    done = min(sink.times[-1] for sink in sinks)
    steady = [t for t in sinks[0].times if begun <= t <= done]
    between = [1e3 * (b - a) for a, b in pairwise(steady)]
    played = [playback(sink, rate) for sink in sinks]
    gaps = [1e3 * (b - a) for sink in sinks for a, b in pairwise(sink.times)]
    steady_sound = batch * len(between) * patch_seconds(config)
    wall = max(sink.times[-1] for sink in sinks) - sinks[0].submitted
    sound = sum(sum(sink.samples) for sink in sinks) / rate
    patch = percentiles(between)
    return {
        "patches": patches,
        "first_audio_ms": percentiles([1e3 * (x.times[0] - x.submitted) for x in sinks]),
        "patch_ms": patch,
        "real_time_factor": 1e-3 * patch["p50"] / patch_seconds(config),
        "gap_ms": percentiles(gaps),
        "underruns": sum(count for count, _ in played),
        "silence_s": sum(silence for _, silence in played),
        "throughput": sound / wall,
        "steady_throughput": steady_sound / (steady[-1] - steady[0]),
        "peak_memory_bytes": peak.bytes,
    }


def playback(sink: TimingSink, rate: int) -> tuple[int, float]:
    """(underruns, seconds of silence they caused) of one request's playback."""
    count, silence = 0, 0.0
    due = sink.times[0]
    for arrived, samples in zip(sink.times, sink.samples):
        if arrived > due:
            count, silence = count + 1, silence + arrived - due
            due = arrived
        due += samples / rate
    return count, silence


def _engine(model, slots: int, patches: int) -> Engine:
    return Engine(model, slots, seconds=patches * patch_seconds(model.config))


def _run(engine: Engine, requests: Sequence[SpeechRequest]) -> list[TimingSink]:
    sinks = []
    begun = time.perf_counter()
    for request in requests:
        sinks.append(TimingSink(begun))
        engine.submit(request, sinks[-1])
    while engine.step():
        pass
    for sink in sinks:
        if sink.error is not None:
            raise sink.error
    return sinks


class Peak:
    """The peak memory of a block: of the allocator on a GPU, of the process on a CPU.

    `bytes` is None where the process's peak cannot be reset: only Linux can (/proc/self/clear_refs).
    """

    def __init__(self, device: torch.device):
        self._device, self.bytes = device, None
        self._known = device.type == "cuda"

    def __enter__(self) -> Peak:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return self
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self._known = True
        except OSError:
            self._known = False
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._known:
            return
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        lines = Path("/proc/self/status").read_text().splitlines()
        self.bytes = next(int(x.split()[1]) << 10 for x in lines if x.startswith("VmHWM"))
