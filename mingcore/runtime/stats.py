"""What a request cost: filled while it runs, complete when it ends."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ..results import Stats

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
class Meter:
    """Fills a Stats: a stopwatch that is paused while a stream's consumer works."""

    device: torch.device
    stats: Stats = field(default_factory=Stats)
    prepare_seconds: float = 0.0  # of text, voice or recording, before the engine saw the request
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
            self.stats.time_to_first_audio = self.prepare_seconds + self.stats.compute_seconds + running
        self._samples += samples
        self.stats.audio_seconds = self._samples / sample_rate


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
