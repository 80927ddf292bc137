"""Whether weights are still those that something was packed from."""

from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLES = 64


def identity_of(weights: Iterable[Tensor]) -> tuple:
    """Changes when weights are replaced, moved, converted, or written in place.

    Writing through `.data` leaves no trace in PyTorch's version counter, so 64 elements of each weight, evenly spread,
    are compared as well: a scaled, merged or copied weight differs in them. On a CPU only, where reading them takes
    microseconds and no synchronisation; and a write to a few rows may miss them all.
    """
    return tuple((w.data_ptr(), w.dtype, w.device, 0 if w.is_inference() else w._version, _sample(w)) for w in weights)


def _sample(w: Tensor) -> bytes:
    if not w.is_cpu or not w.numel() or not w.is_contiguous():
        return b""
    step = max(w.numel() // SAMPLES, 1) | 1  # odd: not the same column of every row
    return w.detach().view(-1)[::step].contiguous().view(torch.uint8).numpy().tobytes()
