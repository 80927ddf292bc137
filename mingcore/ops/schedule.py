"""The time grid of the flow sampler: EPSS table or equal steps, sway, step and noise sizes."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import InputError

_EPSS = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}


@dataclass(frozen=True)
class FlowSchedule:
    """S Euler steps from t[0] = 0 to t[S] = 1. Data only: an argument of the sampler.

    `t` [S+1] and `dt` [S] hold float32 values as Python floats, `noise_scale` [S] is
    sigma * sqrt(temperature) * sqrt(|dt|), the noise after each step. Equal schedules compare
    and hash equal, so that requests can share a batch and time embeddings can be cached by it.
    """

    t: tuple[float, ...]
    dt: tuple[float, ...]
    noise_scale: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.dt)

    @property
    def grid(self) -> Tensor:
        """t as a float32 tensor [S+1] on the CPU."""
        return torch.tensor(self.t, dtype=torch.float32)

    @staticmethod
    def make(
        steps: int = 10,
        *,
        sigma: float = 0.25,
        temperature: float = 1.5,
        epss: bool = True,
        sway: float | None = -1.0,
    ) -> "FlowSchedule":
        """The grid of docs/model.md section 3, evaluated in float32 in the reference's order.

        steps >= 1. sigma, temperature >= 0: size of the noise between steps, none at 0. epss: the
        empirically pruned table for 5, 6, 7, 10, 12 or 16 steps, else (and for any other count)
        equal steps. sway: s in t + s * (cos(pi t / 2) - 1 + t); None or 0: no sway.
        Raises InputError on anything else.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"FlowSchedule: steps must be an int >= 1, got {steps!r}")
        for name, value in (("sigma", sigma), ("temperature", temperature)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"FlowSchedule: {name} must be finite and >= 0, got {value}")
        if sway is not None and not math.isfinite(sway):
            raise InputError(f"FlowSchedule: sway must be finite or None, got {sway}")
        return _make(steps, float(sigma), float(temperature), bool(epss), float(sway or 0.0))


@lru_cache(maxsize=64)
def _make(steps: int, sigma: float, temperature: float, epss: bool, sway: float) -> FlowSchedule:
    if epss and steps in _EPSS:
        t = torch.tensor(_EPSS[steps], dtype=torch.float32) / 32
    else:
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    if sway:
        t = t + sway * (torch.cos(torch.pi / 2 * t) - 1 + t)
    dt = t[1:] - t[:-1]
    if not bool((dt > 0).all()):
        raise InputError(f"FlowSchedule: sway {sway} does not give an increasing grid")
    dt = tuple(dt.tolist())
    scale = tuple(sigma * math.sqrt(temperature) * math.sqrt(step) for step in dt)
    return FlowSchedule(tuple(t.tolist()), dt, scale)
