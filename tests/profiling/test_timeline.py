"""Events of a profiler as stages: nesting, attribution and sums, on events made by hand."""

import pytest

from mingcore.errors import MingError
from mingcore.profiling.timeline import OP, REQUEST, STAGE, Timeline, summed

CALL = {"backend": "cuda", "nbytes": 4_000, "flops": 10}


def event(name, ts, dur, cat="user_annotation", tid=1, **args):
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat, "pid": 7, "tid": tid, "args": args}


HOST = [
    {"ph": "M", "name": "process_name"},
    event("before", 0, 5, "cpu_op"),
    event(REQUEST, 100, 1000),
    event("aten::randn", 110, 20, "cpu_op"),
    event(STAGE + "llm:step", 150, 300),
    event("aten::add", 160, 10, "cpu_op"),
    event(OP + "linear", 200, 100),
    event("aten::empty", 210, 5, "cpu_op"),
    event("somebody's range", 305, 10),
    event("aten::mul", 320, 130.001, "cpu_op"),  # rounding: ends behind its stage
    event(STAGE + "flow:sample", 500, 400),
    event(OP + "flow_sample", 510, 380),
    event("aten::other_thread", 520, 50, "cpu_op", tid=2),
]
GPU = [
    event("cudaLaunchKernel", 220, 5, "cuda_runtime", correlation=1),
    event("cudaLaunchKernel", 330, 5, "cuda_runtime", correlation=2),
    event("cuLaunchKernel", 515, 5, "cuda_driver", correlation=3),
    event("cudaMemcpyAsync", 950, 5, "cuda_runtime", correlation=4),
    event("linear_kernel", 300, 100, "kernel", 9, correlation=1),
    event("mul", 450, 50, "kernel", 9, correlation=2),
    event("flow_kernel", 490, 400, "kernel", 9, correlation=3),
    event("Memcpy DtoH", 1000, 10, "gpu_memcpy", 9, correlation=4),
    event("unknown", 1010, 10, "kernel", 9, correlation=99),
]
CALLS = [{**CALL, "op": "linear", "stage": "llm"}, {**CALL, "op": "flow_sample", "stage": "flow"}]
COUNTED = [("llm", 4_000, 10), ("flow", 4_000, 10)]


def rows(events):
    slices = Timeline.of(events).slices(CALLS)
    return {row.stage: row for row in summed(slices, COUNTED)}, slices


def test_host_time_is_ours_pytorchs_or_neither_and_adds_up():
    found, slices = rows(HOST)
    assert list(found) == ["llm", "flow", "host/other"]
    llm, flow, other = found.values()
    assert (llm.ms, llm.ours_ms, llm.launches, llm.calls) == (0.3, 0.1, 3, 1)
    assert llm.torch_ms == pytest.approx(0.14) and llm.gap_ms == pytest.approx(0.2)
    assert llm.gbs == pytest.approx(4_000 / 0.3e-3 / 1e9)
    assert (flow.ms, flow.ours_ms, flow.gap_ms) == (0.4, 0.38, pytest.approx(0.02))
    assert (other.calls, other.ours_ms, other.torch_ms, other.launches) == (3, 0, 0.02, 1)
    assert sum(row.ms for row in found.values()) == pytest.approx(1.0)
    assert llm.device_ms is None
    names = {s.name for s in slices}
    assert "aten::other_thread" not in names and "before" not in names
    (inner,) = [s for s in slices if s.name == "aten::empty"]
    assert not inner.top and inner.stage == "llm"


def test_no_slice_outlasts_what_it_is_in():
    _, slices = rows(HOST)
    stage = next(s for s in slices if s.name == "step")
    (mul,) = [s for s in slices if s.name == "aten::mul"]
    assert mul.end_us == stage.end_us == 350


def test_a_kernel_belongs_to_the_stage_that_launched_it_and_so_does_the_wait_before_it():
    found, slices = rows(HOST + GPU)
    kernels = {s.name: s for s in slices if s.kind == "kernel"}
    assert {name: s.stage for name, s in kernels.items()} == {
        "linear_kernel": "llm",
        "mul": "llm",
        "flow_kernel": "flow",
        "Memcpy DtoH": "host/other",
        "unknown": "host/other",
    }
    assert [s.ours for s in kernels.values()] == [True, False, True, False, False]
    llm, flow, other = found.values()
    assert (llm.launches, llm.device_ms, llm.device_gap_ms) == (2, 0.15, 0.05)
    assert (flow.launches, flow.device_ms, flow.device_gap_ms) == (1, 0.4, 0)
    assert (other.launches, other.device_ms, other.device_gap_ms) == (2, 0.02, 0.11)
    assert flow.gbs == pytest.approx(4_000 / 0.4e-3 / 1e9)


def test_calls_that_differ_between_runs_are_refused():
    with pytest.raises(MingError, match="not the same in two runs"):
        Timeline.of(HOST).slices(CALLS[:1])
