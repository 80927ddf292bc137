"""What the inverse real FFTs of the CPU and CUDA kernels share: mixed radices and roots of unity."""

import math

import torch
from torch import Tensor

RADICES = (8, 5, 4, 3, 2, 7)
LARGEST_RADIX = max(RADICES)


def radices(points: int) -> tuple[int, ...] | None:
    """The passes of a transform of so many points; None with a prime factor beyond 7."""
    found = []
    for r in RADICES:
        while points % r == 0 and points > 1:
            found.append(r)
            points //= r
    return tuple(found) if points == 1 else None


def unsupported_window(size: int) -> str | None:
    """Why there is no transform for a window of so many points, or None."""
    if size % 2 or radices(size // 2) is None:
        return f"the window has {size} points; it takes twice a product of 2, 3, 5 and 7"
    return None


def roots_of_unity(k: Tensor, n: int) -> Tensor:
    """[2, len(k)] float64: cosines and sines of 2 pi k / n."""
    angle = k.double() * (2 * math.pi / n)
    return torch.stack((angle.cos(), angle.sin()))
