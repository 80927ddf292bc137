"""What a request cost: filled while it runs, complete when it ends."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from ..results import Stats

# by type of device: what a bundle of kernels says of itself; set by who serves one
served_kernels: dict[str, Callable[[], dict]] = {}


@dataclass
class Meter:
    """Fills a Stats: a stopwatch that rests while a stream's consumer has the word."""

    device: torch.device
    stats: Stats = field(default_factory=Stats)
    _started: float | None = None
    _samples: int = 0

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.resume()

    def resume(self) -> None:
        """The engine works again."""
        self._started = time.perf_counter()

    def go_on(self) -> None:
        """The engine works again, if it rested."""
        if self._started is None:
            self.resume()

    def pause(self) -> None:
        """Something goes out, or the request ends."""
        if self._started is not None:
            self.stats.compute_seconds += time.perf_counter() - self._started
            self._started = None
        self.stats.peak_memory_bytes = peak_memory_bytes(self.device)
        use = served_kernels.get(self.device.type)
        if use is not None:
            self.stats.kernels = use()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """What is done meanwhile is not the engine's work."""
        self.pause()
        yield
        self.resume()

    def heard(self, samples: int, sample_rate: int) -> None:
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
