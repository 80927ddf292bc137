"""The flow sampler's schedule as data: the time grid, and what a solver makes of it.

Grids: the EPSS table or equal steps, swayed; or the caller's own; either shifted towards noise for
latents of many dimensions. A solver turns a grid into evaluations of the velocity, which is all
that a sampler sees: it keeps a base and a current state, both the noise at the start, and for each
evaluation computes y = base + dt * v(current, t); y becomes the current state, and with `advance`
the noise of this step is added to it and it becomes the base as well.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from ...errors import InputError

_EPSS = {
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}
UNSHIFTED_DIMS = 4096


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the velocity at time t: y = base + dt * v, then perhaps base = y.

    noise_scale: of the noise that is added to y where `advance`; 0 elsewhere and at the end.
    """

    t: float
    dt: float
    advance: bool = True
    noise_scale: float = 0.0


# (grid t [S+1], noise scale of each step [S], 0 for the last) -> evaluations, S of which advance
Solver = Callable[[Sequence[float], Sequence[float]], Sequence[Evaluation]]


def _euler_maruyama(t: Sequence[float], noise_scale: Sequence[float]) -> list[Evaluation]:
    """x + dt v, and noise between the steps: the model's own."""
    return [Evaluation(t[i], _minus(t[i + 1], t[i]), True, s) for i, s in enumerate(noise_scale)]


def _euler(t: Sequence[float], noise_scale: Sequence[float]) -> list[Evaluation]:
    """x + dt v; no noise."""
    return _euler_maruyama(t, [0.0] * len(noise_scale))


def _midpoint(t: Sequence[float], noise_scale: Sequence[float]) -> list[Evaluation]:
    """x + dt v(x + dt/2 v(x, t), t + dt/2); two evaluations a step, no noise."""
    found = []
    for start, end in pairwise(t):
        dt = _minus(end, start)
        middle = float(_float32(start) + _float32(dt / 2))
        found += [Evaluation(start, dt / 2, False), Evaluation(middle, dt, True)]
    return found


def _float32(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _minus(a: float, b: float) -> float:
    return float(_float32(a) - _float32(b))


SOLVERS: dict[str, Solver] = {"euler_maruyama": _euler_maruyama, "euler": _euler, "midpoint": _midpoint}


@dataclass(frozen=True)
class FlowSchedule:
    """S steps from t[0] to t[S], as E >= S evaluations. Data only: an argument of the sampler.

    `t` [S+1] and `dt` [S] hold float32 values as Python floats; `noise_scale` [S] is
    sigma * sqrt(temperature) * sqrt(dt), the noise after each step, of which the last is not used.
    Equal schedules compare and hash equal, so that requests can share a batch and time embeddings
    can be cached by them.
    """

    t: tuple[float, ...]
    dt: tuple[float, ...]
    noise_scale: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def steps(self) -> int:
        """S: how often the state advances, and how many rows of noise follow the start."""
        return len(self.dt)

    @property
    def grid(self) -> Tensor:
        """t as a float32 tensor [S+1] on the CPU."""
        return torch.tensor(self.t, dtype=torch.float32)

    @property
    def times(self) -> tuple[float, ...]:
        """When the velocity is evaluated [E]."""
        return tuple(e.t for e in self.evaluations)

    @property
    def advance(self) -> tuple[bool, ...]:
        """Which evaluations end a step [E]."""
        return tuple(e.advance for e in self.evaluations)

    @property
    def draws(self) -> int:
        """How many rows of noise are read: the start, and those up to the last that counts."""
        rows = steps = 1
        for e in self.evaluations:
            steps += e.advance
            rows = steps if e.advance and e.noise_scale else rows
        return rows

    def prefix(self, steps: int) -> "FlowSchedule":
        """The first 1 <= `steps` <= S steps alone, without the noise after the last of them."""
        if not 1 <= steps <= self.steps:
            raise InputError(f"FlowSchedule.prefix: steps must be in 1..{self.steps}, got {steps}")
        ends = [i for i, advances in enumerate(self.advance) if advances]
        prefix = list(self.evaluations[: ends[steps - 1] + 1])
        prefix[-1] = Evaluation(prefix[-1].t, prefix[-1].dt)
        return FlowSchedule(self.t[: steps + 1], self.dt[:steps], self.noise_scale[:steps], tuple(prefix))

    @staticmethod
    def make(
        steps: int = 10,
        *,
        sigma: float = 0.25,
        temperature: float = 1.5,
        epss: bool = True,
        sway: float | None = -1.0,
        solver: str | Solver = "euler_maruyama",
        shift_dims: int | None = None,
    ) -> "FlowSchedule":
        """The grid of docs/model.md section 3, evaluated in float32 in the reference's order.

        steps >= 1. sigma, temperature >= 0: size of the noise between steps, none at 0. epss: the
        empirically pruned table for 5, 6, 7, 10, 12 or 16 steps, else (and for any other count)
        equal steps. sway: s in t + s * (cos(pi t / 2) - 1 + t); None or 0: no sway. solver:
        "euler_maruyama", or "euler" and "midpoint", which add no noise, or a function that makes
        evaluations of a grid. shift_dims: see `shifted`. Raises InputError on anything else.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InputError(f"FlowSchedule: steps must be an int >= 1, got {steps!r}")
        if sway is not None and not math.isfinite(sway):
            raise InputError(f"FlowSchedule: sway must be finite or None, got {sway}")
        t = _grid(steps, bool(epss), float(sway or 0.0))
        return FlowSchedule.from_grid(t, sigma=sigma, temperature=temperature, solver=solver, shift_dims=shift_dims)

    @staticmethod
    def from_grid(
        t: Sequence[float],
        *,
        sigma: float = 0.25,
        temperature: float = 1.5,
        solver: str | Solver = "euler_maruyama",
        shift_dims: int | None = None,
    ) -> "FlowSchedule":
        """A schedule on the caller's own grid t [S+1]: increasing, within 0..1, float32.

        The other arguments are those of `make`. Raises InputError.
        """
        for name, value in (("sigma", sigma), ("temperature", temperature)):
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"FlowSchedule: {name} must be finite and >= 0, got {value}")
        if isinstance(solver, str) and solver not in SOLVERS:
            known = ", ".join(SOLVERS)
            raise InputError(f"FlowSchedule: solver must be one of {known}, got {solver!r}")
        if shift_dims is not None and (not isinstance(shift_dims, int) or shift_dims < 1):
            raise InputError(f"FlowSchedule: shift_dims must be an int >= 1, got {shift_dims!r}")
        return _make(tuple(map(float, t)), float(sigma), float(temperature), solver, shift_dims)


def shifted(t: Tensor, dims: int) -> Tensor:
    """The grid t [S+1] moved towards noise, for latents of `dims` values (Zheng et al. 2025, RAE).

    s' = alpha s / (1 + (alpha - 1) s), alpha = sqrt(dims / 4096), in their time s = 1 - t, which
    is 1 where all is noise; so alpha > 1 takes smaller steps there. Without effect below 4096.
    """
    alpha = math.sqrt(dims / UNSHIFTED_DIMS)
    if alpha <= 1:
        return t
    s = 1 - t
    return 1 - alpha * s / (1 + (alpha - 1) * s)


@lru_cache(maxsize=64)
def _grid(steps: int, epss: bool, sway: float) -> tuple[float, ...]:
    if epss and steps in _EPSS:
        t = torch.tensor(_EPSS[steps], dtype=torch.float32) / 32
    else:
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float32)
    if sway:
        t = t + sway * (torch.cos(torch.pi / 2 * t) - 1 + t)
    if not bool((t[1:] > t[:-1]).all()):
        raise InputError(f"FlowSchedule: sway {sway} does not give an increasing grid")
    return tuple(t.tolist())


@lru_cache(maxsize=64)
def _make(
    grid: tuple[float, ...], sigma: float, temperature: float, solver: str | Solver, shift_dims: int | None
) -> FlowSchedule:
    t = torch.tensor(grid, dtype=torch.float32)
    if len(t) < 2 or not bool(((t >= 0) & (t <= 1)).all() and (t[1:] > t[:-1]).all()):
        raise InputError(f"FlowSchedule: the grid must be at least two increasing times in 0..1, got {grid}")
    if shift_dims is not None:
        t = shifted(t, shift_dims)
    dt = tuple((t[1:] - t[:-1]).tolist())
    scale = tuple(sigma * math.sqrt(temperature) * math.sqrt(step) for step in dt)
    t = tuple(t.tolist())
    make = SOLVERS[solver] if isinstance(solver, str) else solver
    found = tuple(make(t, (*scale[:-1], 0.0)))
    if sum(e.advance for e in found) != len(dt) or not found[-1].advance:
        raise InputError(
            f"FlowSchedule: the solver must advance once per step, {len(dt)} times and in its "
            f"last evaluation, got {[e.advance for e in found]}"
        )
    noisy = len(dt) == 1 or any(e.noise_scale for e in found)
    return FlowSchedule(t, dt, scale if noisy else (0.0,) * len(dt), found)
