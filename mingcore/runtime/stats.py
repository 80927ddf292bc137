"""What a request cost: filled while it runs, complete when it ends."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch

# by type of device: what tells a request's stats of the kernels in use; see `report_kernels`
_kernel_reports: dict[str, Callable[[], dict]] = {}


def report_kernels(device_type: str, report: Callable[[], dict] | None) -> None:
    """A hook for whoever serves compiled kernels: from now on, what `report()` gives becomes `Stats.kernels` of every
    request on such a device. None ends it."""
    if report is None:
        _kernel_reports.pop(device_type, None)
    else:
        _kernel_reports[device_type] = report


@dataclass
class Stats:
    """Figures of one request; None where they do not apply.

    `compute_seconds` counts only the engine's time, not what a stream's consumer takes; of a
    request in a batch the time in its slot, while all requests there advance, from when it got it.
    `peak_memory_bytes`: of the device's allocator on a GPU, of the process on a CPU.
    `ended_by`: "stop" (the model ended), "limit" (a duration or token limit), None while running
    or when cancelled. `kernels`: with a bundle of compiled kernels, which one, how many it gave,
    and how many were compiled nevertheless (`aot.serve.Served`).
    """

    seed: int | None = None
    audio_seconds: float = 0.0
    compute_seconds: float = 0.0
    time_to_first_audio: float | None = None
    patches: int = 0
    segments: int = 0
    prompt_tokens: int = 0
    text_tokens: int = 0
    peak_memory_bytes: int = 0
    ended_by: str | None = None
    kernels: dict | None = None

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of computing per second of audio; under 1 is faster than it plays."""
        return self.compute_seconds / self.audio_seconds if self.audio_seconds else None

    def as_dict(self) -> dict:
        """All figures, for JSON."""
        return asdict(self) | {"real_time_factor": self.real_time_factor}

    def __str__(self) -> str:
        parts = [f"{self.audio_seconds:.2f} s of audio in {self.compute_seconds:.2f} s"]
        if self.real_time_factor is not None:
            parts.append(f"real-time factor {self.real_time_factor:.3f}")
        if self.time_to_first_audio is not None:
            parts.append(f"first audio after {1000 * self.time_to_first_audio:.0f} ms")
        if self.patches:
            parts.append(f"{self.patches} patches")
        if self.text_tokens:
            parts.append(f"{self.text_tokens} text tokens")
        if self.kernels:
            given = f"{self.kernels['triton']} of Triton, {self.kernels['cuda']} ops of CUDA"
            parts.append(f"kernels from a bundle ({given}; {self.kernels['compiled']} compiled)")
        parts.append(f"peak memory {self.peak_memory_bytes / 2**20:.0f} MiB")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return ", ".join(parts)


@dataclass
class Meter:
    """Fills a Stats: a stopwatch that is paused while a stream's consumer works."""

    device: torch.device
    stats: Stats = field(default_factory=Stats)
    _started: float | None = None
    _samples: int = 0

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.resume()

    def resume(self) -> None:
        """The engine works again, if it paused."""
        if self._started is None:
            self._started = time.perf_counter()

    def pause(self) -> None:
        """A result goes out, or the request ends."""
        if self._started is not None:
            self.stats.compute_seconds += time.perf_counter() - self._started
            self._started = None
        self.stats.peak_memory_bytes = peak_memory_bytes(self.device)
        report = _kernel_reports.get(self.device.type)
        if report is not None:
            self.stats.kernels = report()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within is not the engine's work."""
        self.pause()
        yield
        self.resume()

    def count_audio(self, samples: int, sample_rate: int) -> None:
        """`samples` of audio are ready to go out."""
        if samples and self.stats.time_to_first_audio is None:
            running = 0.0 if self._started is None else time.perf_counter() - self._started
            self.stats.time_to_first_audio = self.stats.compute_seconds + running
        self._samples += samples
        self.stats.audio_seconds = self._samples / sample_rate


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
