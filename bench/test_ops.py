"""Every op at the sizes of the model: µs, GB/s, share of the read ceiling, against the best other.

`python -m pytest bench --benchmark-only [--size real] [--warm-cache]`; needs a quiet machine.
"""

import pytest
import torch
from measure import measure

from mingcore.ops._core.cases import for_op, ops_with_cases

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# float32 by contract, whatever the network's type
ALWAYS_FLOAT = ("overlap_add",)
ELSEWHERE = ("flow_sample",)  # in a bench of its own


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    size, quick = metafunc.config.getoption("--size"), metafunc.config.getoption("--quick")
    cases = [
        case
        for op in ops_with_cases()
        if not op.startswith("pack_") and op not in ELSEWHERE
        for case in for_op(op, tag=size, large=not quick)
        if metafunc.function is test_gpu or not case.name.endswith("t4096")
    ]
    metafunc.parametrize("case", cases, ids=lambda case: case.id)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_cpu(case, dtype, benchmark, rows, request):
    if dtype != "fp32" and case.op in ALWAYS_FLOAT:
        pytest.skip("float32 by contract")
    _bench(case, dtype, "cpu", benchmark, rows, request.config)


@pytest.mark.gpu
def test_gpu(case, benchmark, rows, request):
    dtype = "fp32" if case.op in ALWAYS_FLOAT else "bf16"
    _bench(case, dtype, "cuda", benchmark, rows, request.config)


def _bench(case, dtype, device, benchmark, rows, config):
    benchmark.group = f"{case.id} {dtype} {device}"
    with torch.inference_mode():
        row, ours = measure(
            case,
            DTYPES[dtype],
            device=device,
            cold=not config.getoption("--warm-cache"),
            quick=config.getoption("--quick"),
            budget_s=config.getoption("--budget"),
        )
        rows.append(row)
        benchmark.extra_info.update(row.as_dict())
        if device == "cuda":  # its time is the replay's; the host's clock would see launches only
            benchmark.pedantic(lambda: (ours(), torch.cuda.synchronize()), rounds=5)
        else:
            benchmark.pedantic(ours, rounds=10, warmup_rounds=1)
