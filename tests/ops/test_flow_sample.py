"""`flow_sample` on the CPU: against plain loops, and what every backend must hold."""

import pytest
import torch

import mingcore.ops as ops
from mingcore.ops._core import backends
from mingcore.testing.compare import max_relative
from tests.ops import flow_harness, slow

BACKENDS = [backend for backend in ("reference", "cpu") if backends.load(backend, "flow") is None]
SLOW = ("odd_qk_norm", "temperature_mixed", "midpoint", "history_0", "rope_heads", "fp8_odd_sizes")
UNSERVED = {"cpu": ("fp8",)}  # formats


def served(backend):
    return lambda case: case.dims.get("format") not in UNSERVED.get(backend, ())


CHECKS = [
    pytest.param(check, id=f"{backend}-{name}")
    for backend in BACKENDS
    for name, check in flow_harness.checks(
        backend,
        dtypes=(torch.float32, torch.bfloat16),
        repeats=1000 if backend == "cpu" else 20,
        served=served(backend),
    )
]


@pytest.mark.parametrize("check", CHECKS)
def test_holds(check):
    check()


@pytest.mark.parametrize("name", SLOW)
def test_reference_is_the_formula(name):
    small = {"L": 2, "H": 24, "W": 20, "C": 5, "Hc": 7, "heads": 2, "N": 2, "P": 2}
    if name == "history_0":
        del small["N"]
    kwargs = flow_harness.make(name, device="cpu", dtype=torch.float32, rows=False, **small)
    with torch.no_grad():
        got = ops.flow_sample(**kwargs, backend="reference")
        assert max_relative(got, slow.flow_sample(**kwargs)) <= 1e-5
