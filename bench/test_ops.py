"""Every op at the sizes of the model under pytest-benchmark: rows of `run.py --op`, compared over time.

`python -m pytest bench --benchmark-only [--size real] [--warm-cache]`; needs a quiet machine.
"""

import pytest
import torch

import measure
import run
from mingcore.testing.roofline import ceilings


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    cases = [
        case
        for case in run.chosen_cases(None, metafunc.config.getoption("--size"), metafunc.config.getoption("--quick"))
        if metafunc.function is test_gpu or not case.name.endswith("t4096")
    ]
    metafunc.parametrize("case", cases, ids=lambda case: case.id)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_cpu(case, dtype, benchmark, rows, request):
    if dtype != "fp32" and case.op in run.ALWAYS_FLOAT:
        pytest.skip("float32 by contract")
    _bench(case, dtype, "cpu", benchmark, rows, request.config)


@pytest.mark.gpu
def test_gpu(case, benchmark, rows, request):
    dtype = "fp32" if case.op in run.ALWAYS_FLOAT else "bf16"
    _bench(case, dtype, "cuda", benchmark, rows, request.config)


def _bench(case, dtype, device, benchmark, rows, config):
    benchmark.group = f"{case.id} {dtype} {device}"
    quick = config.getoption("--quick")
    with torch.inference_mode():
        cold = not config.getoption("--warm-cache")
        point = measure.ops_point(case, run.DTYPES[dtype], device=device, cold=cold, quick=quick)
        ceiling = ceilings(device, quick=quick)
        (row,) = point.rows(ceiling, quick=quick, budget_s=config.getoption("--budget"))
        rows.append(row)
        benchmark.extra_info.update(row.as_dict())
        ours = point.ours["ours"].call
        if device == "cuda":  # its time is the replay's; the host's clock would see launches only
            benchmark.pedantic(lambda: (ours(), torch.cuda.synchronize()), rounds=5)
        else:
            benchmark.pedantic(ours, rounds=10, warmup_rounds=1)
