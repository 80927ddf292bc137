"""Every setting of a request is checked, by name."""

import math

import numpy as np
import pytest

from mingcore.errors import InputError
from mingcore.runtime.params import FlowParams, PatchLimits, TextParams, draw_seed, seconds_range

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"steps": -1}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": "10"}, "steps"),
        ({"steps": 10**9}, "steps"),
        ({"guidance": NAN}, "guidance"),
        ({"guidance": -0.1}, "guidance"),
        ({"guidance": INF}, "guidance"),
        ({"guidance": None}, "guidance"),
        ({"guidance": "2"}, "guidance"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": NAN}, "temperature"),
        ({"sigma": -1}, "sigma"),
        ({"sigma": INF}, "sigma"),
    ],
)
def test_flow_settings(settings, name):
    with pytest.raises(InputError, match=rf"^{name}: must be a .*, got "):
        FlowParams(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"temperature": NAN}, "temperature"),
        ({"temperature": -1}, "temperature"),
    ],
)
def test_text_settings(settings, name):
    with pytest.raises(InputError, match=rf"^{name}: must be a .*, got "):
        TextParams(**settings)


def test_orders_of_noise():
    assert FlowParams().noise == "reference" and FlowParams(noise="per_request").noise
    with pytest.raises(InputError, match="^noise: must be one of reference, per_request, got 'x'"):
        FlowParams(noise="x")


def test_numbers_of_numpy_are_numbers():
    flow = FlowParams(np.int64(8), np.float32(1.5))
    assert flow.steps == 8 and type(flow.steps) is int and flow.guidance == 1.5
    assert flow.schedule.steps == 8
    assert FlowParams(temperature=0).schedule.noise_scale == (0.0,) * 10


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "0", True, NAN])
def test_seeds_that_are_none(seed):
    with pytest.raises(InputError, match=r"^seed: must be a whole number"):
        draw_seed(seed)


def test_seeds():
    assert draw_seed(0) == 0 and draw_seed(2**63 - 1) == 2**63 - 1
    drawn = {draw_seed(None) for _ in range(8)}
    assert len(drawn) == 8 and all(0 <= s < 2**32 for s in drawn)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-1, None, "min_seconds: must be"),
        (NAN, None, "min_seconds: must be"),
        (None, 0, "max_seconds: must be more than 0"),
        (None, -2, "max_seconds: must be"),
        (None, INF, "max_seconds: must be"),
        (3, 2, "min_seconds: must not exceed max_seconds"),
        (None, "4", "max_seconds: must be"),
    ],
)
def test_durations(low, high, message):
    with pytest.raises(InputError, match=message):
        seconds_range(low, high)


def test_seconds_become_patches():
    def limits(low, high, expected=1.0):
        seconds = (low, high, 0.1)
        found = PatchLimits.from_seconds(*seconds, min_patches=18, expected_seconds=expected)
        return found.min_patches, found.max_patches, found.expected

    assert limits(None, 30) == (18, 300, 10)
    assert limits(0, 30) == (1, 300, 10)
    assert limits(0.3, 0.3) == (3, 3, 3)
    assert limits(0.31, 30)[0] == 4
    # a limit under one patch is one patch
    assert limits(None, 0.5) == (18, 5, 5) and limits(None, 0.01) == (18, 1, 1)
    assert math.isclose(limits(None, 4)[1] * 0.1, 4)
