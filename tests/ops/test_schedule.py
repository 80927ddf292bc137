import pytest
import torch

from mingcore import InputError
from mingcore.ops import FlowSchedule

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
        ({"sway": 9.0}, "does not give an increasing grid"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        FlowSchedule.make(**kwargs)
