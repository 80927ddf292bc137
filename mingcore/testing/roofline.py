"""The machine's measured ceilings, the 100 % of every benchmark.

CPU: a multi-threaded streaming read of bfloat16 with FMA over a buffer of several times the last-level cache
(`mingcore._cpu.read_probe`, the fastest of several access patterns, with small and huge pages), a copy, and a large
matrix product per dtype. GPU: read, copy and matrix products through PyTorch, on random inputs and buffers of many
times the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from .machine import last_level_cache_bytes, native
from .timing import event_s, interleaved, threads

# (streams per thread, bytes of software prefetch distance; 0: hardware prefetch only)
READ_PATTERNS = ((1, 0), (1, 8192), (2, 0), (2, 4096), (4, 1024), (4, 2048), (8, 1024))
_NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second and operations per second that this machine reaches.

    `read_gbs` and `copy_gbs` are 1e9 bytes per second (a copy counts bytes read plus written);
    `gemm_tflops` maps "fp32", "bf16" and on a GPU "fp16" to 1e12 operations per second.
    """

    device: str
    threads: int
    read_gbs: float
    copy_gbs: float
    gemm_tflops: dict[str, float]
    cache_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def floor_s(self, nbytes: int, flops: int = 0, dtype: str = "fp32") -> float:
        """The minimum time to read `nbytes` and do `flops` operations, the longer of both."""
        return max(nbytes / (self.read_gbs * 1e9), flops / (self.gemm_tflops[dtype] * 1e12))


@lru_cache(maxsize=8)
def ceilings(device: str = "cpu", num_threads: int | None = None, quick: bool = False) -> Ceilings:
    """Measures once per process. quick: smaller buffers, for dry runs and tests."""
    if torch.device(device).type == "cuda":
        return _gpu(quick)
    with threads(num_threads) as n:
        cache = last_level_cache_bytes()
        nbytes = 4 * cache if quick else max(6 * cache, 256 << 20)
        return Ceilings(
            device="cpu",
            threads=n,
            read_gbs=read_gbs(nbytes, rounds=3 if quick else 9),
            copy_gbs=_copy_gbs(nbytes, rounds=3 if quick else 9),
            gemm_tflops=_cpu_gemm(256 if quick else 1536),
            cache_bytes=cache,
        )


def read_gbs(nbytes: int, rounds: int = 9) -> float:
    """The read probe in 1e9 bytes per second: the best round, because it is a ceiling."""
    x = torch.randn(nbytes // 2, dtype=torch.bfloat16)
    calls = _reads(x)
    huge = _on_huge_pages(x)
    calls.update({(*pattern, "huge"): call for pattern, call in _reads(huge).items()})
    samples = interleaved(calls, rounds=rounds, sample_s=1e-3).samples
    return x.nbytes / min(min(times) for times in samples.values()) / 1e9


def fastest_read(x: Tensor) -> Callable[[], Any]:
    """A call that reads the bfloat16 tensor x in the fastest access pattern of this moment: for benchmarks that
    interleave the probe with what it is compared to."""
    calls = _reads(x)
    samples = interleaved(calls, rounds=5, sample_s=1e-3).samples
    return calls[min(samples, key=lambda pattern: min(samples[pattern]))]


def _reads(x: Tensor) -> dict[tuple, Callable[[], Any]]:
    return {pattern: partial(_read, x, *pattern) for pattern in READ_PATTERNS}


def _read(x: Tensor, streams: int, prefetch_bytes: int) -> None:
    """x is an argument, not its address, so that a stored call keeps the memory alive."""
    native.read_probe(x.data_ptr(), x.nbytes, torch.get_num_threads(), streams, prefetch_bytes)


def _on_huge_pages(x: Tensor) -> Tensor:
    """A copy of x on huge pages, where the system provides them (madvise)."""
    copy = torch.empty_like(x)
    native.ask_for_huge_pages(copy.data_ptr(), copy.nbytes)
    return copy.copy_(x)


def _copy_gbs(nbytes: int, rounds: int) -> float:
    source = torch.randn(nbytes // 4)
    target = torch.empty_like(source)
    measured = interleaved({"copy": lambda: target.copy_(source)}, rounds=rounds)
    return 2 * source.nbytes / min(measured.samples["copy"]) / 1e9


def _cpu_gemm(n: int) -> dict[str, float]:
    rates = {}
    for name in ("fp32", "bf16"):  # PyTorch's fp16 product is a scalar loop on most CPUs
        a, b = (torch.randn(n, n, dtype=_NAMES[name]) for _ in range(2))
        rates[name] = _best_tflops(n, _product(a, b))
    return rates


def _product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    return lambda: a @ b


def _best_tflops(n: int, call: Callable[[], Any]) -> float:
    measured = interleaved({"mm": call}, rounds=5, sample_s=1e-3, budget_s=1.0)
    return 2 * n**3 / min(measured.samples["mm"]) / 1e12


def _gpu(quick: bool) -> Ceilings:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    nbytes = (1 << 28) if quick else (4 << 30)
    read, copy = _gpu_read_and_copy_s(nbytes)
    n = 2048 if quick else 8192
    rates = {}
    for name, dtype in _NAMES.items():
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        product = _product(a, b)
        product()
        rates[name] = 2 * n**3 / min(event_s(product, 3) for _ in range(4)) / 1e12
    return Ceilings(
        device=properties.name,
        threads=0,
        read_gbs=nbytes / read / 1e9,
        copy_gbs=2 * nbytes / copy / 1e9,
        gemm_tflops=rates,
        cache_bytes=properties.L2_cache_size,
    )


def _gpu_read_and_copy_s(nbytes: int) -> tuple[float, float]:
    source = torch.empty(nbytes // 2, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(source)
    words = source.view(torch.float32)  # their sum is meaningless; only the read is timed
    read = min(event_s(words.sum) for _ in range(8))
    copy = min(event_s(lambda: target.copy_(source)) for _ in range(8))
    return read, copy
