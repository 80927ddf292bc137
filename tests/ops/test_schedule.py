import pytest
import torch

from mingcore import InputError
from mingcore.ops import Evaluation, FlowSchedule

COUNTS = (1, 2, 4, 5, 6, 7, 8, 10, 12, 16, 32)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize(("name", "sway"), [("timesteps", None), ("timesteps_sway", -1.0)])
def test_grid_has_the_bits_of_the_reference(golden, steps, name, sway):
    schedule = FlowSchedule.make(steps, sway=sway)
    assert torch.equal(schedule.grid, golden("f_flow")[f"{name}.{steps}"])
    assert schedule.steps == steps == len(schedule.dt) == len(schedule.noise_scale)
    assert torch.equal(torch.tensor(schedule.dt), schedule.grid.diff())


def test_equal_steps_without_epss():
    schedule = FlowSchedule.make(10, epss=False, sway=None)
    assert torch.equal(schedule.grid, torch.linspace(0, 1, 11))


def test_noise_scale_is_sigma_root_temperature_root_dt():
    schedule = FlowSchedule.make(7, sigma=0.3, temperature=1.7)
    expected = [0.3 * (1.7 * dt) ** 0.5 for dt in schedule.dt]
    assert schedule.noise_scale == pytest.approx(expected, rel=1e-12)
    assert FlowSchedule.make(7, temperature=0.0).noise_scale == (0.0,) * 7


def test_solvers_as_evaluations():
    t = (0.0, 0.25, 0.5, 1.0)
    maruyama = FlowSchedule.from_grid(t)
    assert maruyama.times == t[:3] and maruyama.advance == (True,) * 3
    assert [e.dt for e in maruyama.evaluations] == [0.25, 0.25, 0.5]
    scales = [e.noise_scale for e in maruyama.evaluations]
    assert scales == [*maruyama.noise_scale[:2], 0.0] and maruyama.draws == 3
    euler = FlowSchedule.from_grid(t, solver="euler")
    assert euler.noise_scale == (0.0,) * 3 and euler.draws == 1 and euler.times == t[:3]
    midpoint = FlowSchedule.from_grid(t, solver="midpoint")
    assert midpoint.times == (0.0, 0.125, 0.25, 0.375, 0.5, 0.75)
    assert [e.dt for e in midpoint.evaluations] == [0.125, 0.25, 0.125, 0.25, 0.25, 0.5]
    assert midpoint.advance == (False, True) * 3 and midpoint.steps == 3 and midpoint.draws == 1


def test_a_solver_of_ones_own():
    def last_only(t, noise_scale):
        return [Evaluation(a, 0.5, True, s) for a, s in zip(t, noise_scale)]

    schedule = FlowSchedule.make(4, solver=last_only)
    assert [e.dt for e in schedule.evaluations] == [0.5] * 4
    assert schedule is FlowSchedule.make(4, solver=last_only)
    with pytest.raises(InputError, match=r"must advance once per step, 4 times .* got \[\]"):
        FlowSchedule.make(4, solver=lambda t, noise_scale: [])


def test_prefixes_end_without_noise():
    whole = FlowSchedule.make(10)
    part = whole.prefix(4)
    assert part.steps == 4 and part.evaluations[:3] == whole.evaluations[:3]
    assert part.evaluations[3].noise_scale == 0 and part.t == whole.t[:5]
    assert FlowSchedule.make(4, solver="midpoint").prefix(2).advance == (False, True) * 2
    assert whole.prefix(10).evaluations == whole.evaluations
    for steps in (0, 11):
        with pytest.raises(InputError, match=rf"steps must be in 1..10, got {steps}"):
            whole.prefix(steps)


def test_shift_towards_noise():
    """In the time of its authors, s = 1 - t: s' = a s / (1 + (a - 1) s), a = sqrt(d / 4096)."""
    plain, moved = (FlowSchedule.make(10, shift_dims=d) for d in (None, 4 * 4096))
    s = 1 - plain.grid.double()
    assert torch.allclose(moved.grid.double(), 1 - 2 * s / (1 + s), atol=1e-6)
    assert (moved.grid <= plain.grid + 1e-6).all() and moved.t[0] == 0
    assert moved.t[-1] == pytest.approx(1, abs=1e-6)
    for d in (5 * 64, 4096):
        assert FlowSchedule.make(10, shift_dims=d) == plain


def test_equal_schedules_are_equal_and_hash_equal():
    a, b = FlowSchedule.make(10), FlowSchedule.make(10, sigma=0.25)
    assert a == b and hash(a) == hash(b) and a != FlowSchedule.make(10, sigma=0.2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": 0}, "steps must be an int >= 1, got 0"),
        ({"steps": -3}, "steps must be an int >= 1, got -3"),
        ({"steps": 2.5}, "steps must be an int >= 1, got 2.5"),
        ({"steps": True}, "steps must be an int >= 1, got True"),
        ({"sigma": -0.1}, "sigma must be finite and >= 0"),
        ({"temperature": float("nan")}, "temperature must be finite and >= 0, got nan"),
        ({"sway": float("inf")}, "sway must be finite or None"),
        ({"solver": "heun"}, "solver must be one of euler_maruyama, euler, midpoint, got 'heun'"),
        ({"shift_dims": 0}, "shift_dims must be an int >= 1, got 0"),
        ({"shift_dims": 1.5}, "shift_dims must be an int >= 1, got 1.5"),
        ({"sway": 9.0}, "does not give an increasing grid"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        FlowSchedule.make(**kwargs)


@pytest.mark.parametrize(
    "grid", [(), (0.0,), (0.0, 0.0), (0.0, 0.5, 0.4), (-0.1, 1.0), (0.0, 1.1), (0.0, float("nan"))]
)
def test_grids_that_are_none(grid):
    with pytest.raises(InputError, match="at least two increasing times in 0..1"):
        FlowSchedule.from_grid(grid)
