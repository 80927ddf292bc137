"""CUDA graphs of the step: captured at load, replayed by key. Not measured: see README.

A captured function takes nothing, works on buffers that stay where they are, and gives the same tensors with every
replay. What was not captured runs eagerly, which is right but slower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch

logger = logging.getLogger(__name__)

WARM_UPS = 2


class Capture(Protocol):
    """Makes a graph of a function: runs it once for real, returns its replay and its results."""

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]: ...


class CudaCapture:
    """`Capture` on a CUDA device; all graphs share one memory pool, as they never run at once."""

    def __init__(self, device: torch.device):
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with torch.cuda.device(self._device):
            # warm-up: what compiles, tunes or allocates for good does it here
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # other threads may go on using CUDA meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = function()
        return graph.replay, result


class Graphs:
    """Functions by key, captured or not. `capture` None: nothing ever is."""

    def __init__(self, capture: Capture | None):
        self._capture, self._impossible, self._short = capture, False, False
        self._kept: dict[Hashable, tuple[Callable[[], None], Any, Any]] = {}

    @property
    def used(self) -> bool:
        """Whether functions are captured at all."""
        return self._capture is not None

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, key: Hashable, function: Callable[[], Any], keep: Any = None) -> None:
        """Captures `function` under `key`; `keep`: tensors that it reads and nobody else may hold.

        It must leave no trace when it is run. Where it cannot be captured, that is logged once and the function will
        run eagerly: short of memory others may still be captured, but a step that synchronises with the host (an op
        that runs as its PyTorch formula) rules all of them out.
        """
        if self._capture is None or self._impossible:
            return
        try:
            self._kept[key] = (*self._capture(function), keep)
        except RuntimeError as error:
            self._impossible = not isinstance(error, torch.cuda.OutOfMemoryError)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            what = "any step" if self._impossible else f"{key}, and more may lack memory"
            if self._impossible or not self._short:
                logger.warning("no CUDA graph of %s, which runs slower without: %s", what, reason)
            self._short = True

    def run(self, key: Hashable, function: Callable[[], Any]) -> Any:
        """The replay of what was captured under `key`, else `function` itself."""
        kept = self._kept.get(key)
        if kept is None:
            return function()
        replay, result, _ = kept
        replay()
        return result

    def clear(self) -> None:
        """Forgets all: their memory moved."""
        self._kept.clear()


def graphs_for(device: torch.device, wanted: bool = True) -> Graphs:
    """Graphs on a CUDA device where they are wanted; elsewhere functions run eagerly."""
    return Graphs(CudaCapture(device) if wanted and device.type == "cuda" else None)
