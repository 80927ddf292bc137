"""Results on their way from the device to the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .step import PatchOutput


@dataclass(frozen=True)
class HostPatch:
    """A patch on the host: `samples` [n,L] float32, and of each row what `PatchOutput` says."""

    samples: np.ndarray
    counts: list[int]
    consumed: list[bool]
    ended: list[bool]
    stopped: list[bool]


class AsyncHostCopy:
    """The one way from device to host: a copy into pinned memory that starts at once, and an event that is waited for
    when the results are read. Work that is launched later is not waited for.

    stable: the tensors will not change, as the outputs of a replayed graph do, so a CPU needs no copy.
    """

    def __init__(self, *tensors: Tensor, stable: bool = True):
        self._event = None
        if tensors[0].is_cuda:
            host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for copy, tensor in zip(host, tensors):
                copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensors[0].device))
            tensors = tuple(host)
        elif not stable:
            tensors = tuple(t.clone() for t in tensors)
        self._tensors = tensors

    @classmethod
    def of_patch(cls, out: PatchOutput, *, stable: bool = True) -> AsyncHostCopy:
        """What `HostPatch` holds of a patch."""
        return cls(out.samples, out.counts, out.consumed, out.ended, out.stopped, stable=stable)

    def wait(self) -> tuple[Tensor, ...]:
        """The tensors, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensors

    def patch(self) -> HostPatch:
        """Those of `of_patch`."""
        samples, *flags = self.wait()
        return HostPatch(samples.numpy(), *(t.tolist() for t in flags))
