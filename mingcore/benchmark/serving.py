"""Requests through the engine as it serves them: first audio, patches, gaps, throughput, memory.

Playback is thought to begin with a request's first chunk; a chunk that comes after all the sound
before it has been played is an underrun, and what follows is heard that much later.
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
STEADY = 8  # patches with everybody there, at the least


@dataclass
class Listener:
    """An output sink that takes everything and notes when it came."""

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
    """p50, p95, p99 and the largest, by the next rank up; and how many there were."""
    ordered = sorted(values)
    at = {q: ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)] for q in (95, 99)}
    return {"p50": median(ordered), "p95": at[95], "p99": at[99], "max": ordered[-1], "count": len(ordered)}


def new_request(model, seed: int, patches: int) -> SpeechRequest:
    """Exactly so many patches, after 3 s of a voice of its own."""
    config = model.config
    frames = round(VOICE_SECONDS / patch_seconds(config)) * config.patch_frames
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, frames, config.latent_dim, generator=generator)
    seconds = patches * patch_seconds(config)
    return SpeechRequest(
        ((TEXT, seconds),), latents.to(model.llm.device), TRANSCRIPT, FlowParams(), seed, seconds, seconds
    )


def first_audio(model, rounds: int) -> dict[str, Any]:
    """One request at a time, from its submission to its first chunk, in ms."""
    engine = _engine(model, 1, 1)
    _run(engine, [new_request(model, 1000, 1)])  # what the first request ever does
    waits = []
    for i in range(rounds):
        (listener,) = _run(engine, [new_request(model, i, 1)])
        waits.append(1e3 * (listener.times[0] - listener.submitted))
    engine.close()
    return percentiles(waits)


def serve(model, batch: int, seconds: float) -> dict[str, Any]:
    """`batch` requests at once, submitted together, each of `seconds` of sound or a bit more.

    patch_ms: between two chunks of a request while all speak and nobody joins. throughput: sound
    per second of the whole, prompts included; steady: of the former part.
    """
    check_slots(batch)
    config = model.config
    # one joins a round: the first must still speak when the last has joined
    patches = max(math.ceil(seconds / patch_seconds(config)), batch + STEADY)
    with Peak(model.llm.device) as peak:
        engine = _engine(model, batch, patches)
        _run(engine, [new_request(model, 1000 + i, 2) for i in range(batch)])
        listeners = _run(engine, [new_request(model, i, patches) for i in range(batch)])
        engine.close()
        del engine
    rate = config.sample_rate
    begun = max(one.times[0] for one in listeners)
    done = min(one.times[-1] for one in listeners)
    steady = [t for t in listeners[0].times if begun <= t <= done]
    between = [1e3 * (b - a) for a, b in pairwise(steady)]
    played = [playback(one, rate) for one in listeners]
    gaps = [1e3 * (b - a) for one in listeners for a, b in pairwise(one.times)]
    steady_sound = batch * len(between) * patch_seconds(config)
    wall = max(one.times[-1] for one in listeners) - listeners[0].submitted
    sound = sum(sum(one.samples) for one in listeners) / rate
    patch = percentiles(between)
    return {
        "patches": patches,
        "first_audio_ms": percentiles([1e3 * (x.times[0] - x.submitted) for x in listeners]),
        "patch_ms": patch,
        "real_time_factor": 1e-3 * patch["p50"] / patch_seconds(config),
        "gap_ms": percentiles(gaps),
        "underruns": sum(count for count, _ in played),
        "silence_s": sum(silence for _, silence in played),
        "throughput": sound / wall,
        "steady_throughput": steady_sound / (steady[-1] - steady[0]),
        "peak_memory_bytes": peak.bytes,
    }


def playback(listener: Listener, rate: int) -> tuple[int, float]:
    """(underruns, seconds of silence they caused) of one request's playback."""
    count, silence = 0, 0.0
    due = listener.times[0]
    for arrived, samples in zip(listener.times, listener.samples):
        if arrived > due:
            count, silence = count + 1, silence + arrived - due
            due = arrived
        due += samples / rate
    return count, silence


def _engine(model, slots: int, patches: int) -> Engine:
    return Engine(model, slots, seconds=patches * patch_seconds(model.config))


def _run(engine: Engine, requests: Sequence[SpeechRequest]) -> list[Listener]:
    listeners = []
    begun = time.perf_counter()
    for request in requests:
        listeners.append(Listener(begun))
        engine.submit(request, listeners[-1])
    while engine.step():
        pass
    for listener in listeners:
        if listener.error is not None:
            raise listener.error
    return listeners


class Peak:
    """A block's peak of memory: the allocator's on a GPU, of the process on a CPU.

    `bytes` None where the system cannot forget earlier peaks: only Linux can.
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
