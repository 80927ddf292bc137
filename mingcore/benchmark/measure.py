"""The measurement of `mingcore bench`, as one JSON-ready result."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, NotEnoughMemory
from ..runtime.speaking import Speaking
from ..runtime.stats import peak_memory_bytes
from ..testing import machine
from . import lockstep, serving
from .floors import floors, rates, work
from .subject import Subject

BATCHES = {"cpu": (1, 4), "cuda": (1, 4, 8, 16, 32, 64)}
SECONDS = {"cpu": 2.0, "cuda": 30.0}  # of sound per request
PATCHES = {"cpu": 12, "cuda": 20}  # by stages
FLOOR_PATCHES = 4  # with fewer patches no floors are computed
FIRST_AUDIO_ROUNDS = {"cpu": 3, "cuda": 20}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is measured; None: a default for the device.

    batches: numbers of concurrent requests. seconds: of audio per request. patches: timed by stage, of the baseline
    too. weights: the format of our large matrices. limit_s: seconds after which nothing new is started. Raises
    InputError for numbers out of range.
    """

    batches: Sequence[int] | None = None
    seconds: float | None = None
    patches: int | None = None
    weights: str | None = None
    baseline: bool = True
    limit_s: float = float("inf")

    def __post_init__(self) -> None:
        for name, values in (("batch", self.batches), ("patches", [self.patches])):
            if not all(v is None or 1 <= v <= 1024 for v in values or ()):
                raise InputError(f"{name}: must be from 1 to 1024, got {values}")
        for name in ("seconds", "limit_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}: must be more than 0, got {value}")


def measure(subject: Subject, settings: Settings, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Loads the model, measures, and returns the result. `progress` gets the name of each step.

    Raises NotEnoughMemory when our model does not fit. A baseline that does not fit, and what `limit_s` leaves no time
    for, is left out: `left_out` lists what and why.
    """
    begun, kind = time.monotonic(), subject.device.type
    batches = list(settings.batches or BATCHES[kind])
    seconds = settings.seconds or SECONDS[kind]
    patches = settings.patches or PATCHES[kind]
    left_out: list[str] = []

    def time_left() -> float:
        return settings.limit_s - (time.monotonic() - begun)

    progress(f"{subject.name}: loading")
    model = subject.load(settings.weights)
    loaded = peak_memory_bytes(subject.device)
    progress("first audio")
    alone = serving.first_audio(model, FIRST_AUDIO_ROUNDS[kind])
    rows = []
    for batch in batches:
        if time_left() <= 0:
            left_out.append(f"{batch} at once: no time was left")
            continue
        progress(f"{batch} at once")
        try:
            rows.append({"batch": batch, **serving.serve(model, batch, seconds)})
        except torch.cuda.OutOfMemoryError as error:
            left_out.append(f"{batch} at once: {str(error).splitlines()[0]}")
    measured_rates = None
    if rows and patches >= FLOOR_PATCHES and time_left() > 0:
        progress("ceilings: reads and products")
        try:
            measured_rates = rates(subject.device)
        except torch.cuda.OutOfMemoryError as error:
            left_out.append(f"the stages' floors: {str(error).splitlines()[0]}")
    eager = None
    if settings.baseline and time_left() > 0:
        progress("loading the baseline")
        try:
            eager = subject.load_baseline()
        except NotEnoughMemory as error:
            left_out.append(str(error))
    for i, row in enumerate(rows):
        if time_left() <= 0:
            left_out.append(f"stages of {row['batch']} at once: no time was left")
            continue
        progress(f"{row['batch']} at once, by stages")
        try:
            row["stages"] = lockstep.compare(
                model,
                eager,
                row["batch"],
                patches=patches,
                limit=lockstep.LIMITS[model.weights if settings.weights else NAMES[subject.dtype]],
                budget_s=time_left() / (len(rows) - i),
            )
            if measured_rates is not None:
                row["stages"]["floors"] = floors(
                    work(model, row["batch"]), measured_rates, row["stages"]["ours"], model.weights
                )
        except torch.cuda.OutOfMemoryError as error:
            left_out.append(f"stages of {row['batch']} at once: {str(error).splitlines()[0]}")
    prompt = serving.new_request(model, 0, 1)
    first = next((row["stages"] for row in rows if "stages" in row), {})
    return {
        "kind": "end_to_end",
        "machine": machine.describe(),
        "size": subject.name,
        "random_weights": subject.random,
        "dtype": NAMES[subject.dtype],
        "weights": model.weights,
        "device": str(subject.device),
        "seconds": seconds,
        "prompt": _prompt(model, prompt),
        "loaded_bytes": loaded,
        "first_audio_ms": alone,
        "batches": rows,
        "left_out": left_out,
        **first,
    }


def _prompt(model, request) -> str:
    tokens = len(Speaking(model, request).next_segment().prompt.ids)
    return f"{tokens} tokens, {serving.VOICE_SECONDS:g} s of voice among them"
