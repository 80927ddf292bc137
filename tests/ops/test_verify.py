"""The run that proves kernels: its worker on CPU tensors, its parent with bad workers."""

import json
import sys

import pytest
import torch

import mingcore.ops as ops
from mingcore import BackendError, InputError
from mingcore.ops._core import records as verified
from mingcore.ops._core import verify
from mingcore.ops._core.op import OPS
from mingcore.ops._core.support import Support
from mingcore.ops.activation import SILU_MUL
from mingcore.testing import verify_kernels

WORKER = """
import json, os, sys, time
print("a kernel prints something")
for name in sys.argv[1:]:
    op = name.split(":")[0]
    if op == "silu_mul":
        print("cudaErrorIllegalAddress", file=sys.stderr, flush=True)
        os._exit(7)
    if op == "rope":
        time.sleep(60)
    answer = {"reason": "wrong" if op == "flow_step" else "", "cases": 3}
    answer.update(skipped=1, seconds=0.1)
    print("mingcore-verify " + json.dumps(answer), flush=True)
"""


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="verify: no GPU here"):
        verify.run()


@pytest.fixture
def machine(monkeypatch, tmp_path, serve):
    """A GPU in name, five Triton kernels, and a worker that dies on one and hangs on another."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Test")
    monkeypatch.setattr(verified, "architecture", lambda device: "sm_90")
    monkeypatch.setenv("MINGCORE_CACHE", str(tmp_path / "cache"))
    for op in OPS.values():
        op.implementations.pop("triton", None)
        op.implementations.pop("cuda", None)
    for op in ("flow_step", "linear", "rms_norm", "rope", "silu_mul"):
        serve(OPS[op], "triton", verify_kernels.main)
    (tmp_path / "misbehaving_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verify, "WORKER", "misbehaving_worker")
    return tmp_path


def test_a_crash_and_a_hang_lose_only_themselves(machine, monkeypatch):
    monkeypatch.setattr(verify, "KERNEL_TIMEOUT_S", 1.5)
    seen = []
    results = verify.run(progress=seen.append)
    assert seen == results
    by_op = {result.op: result for result in results}
    assert list(by_op) == ["flow_step", "linear", "rms_norm", "rope", "silu_mul"]
    assert by_op["linear"].passed and by_op["rms_norm"].passed
    assert by_op["linear"].cases == 3 and by_op["linear"].skipped == 1
    assert by_op["flow_step"].reason == "wrong"
    assert by_op["rope"].reason == "hung: no answer within the time limit"
    assert by_op["silu_mul"].reason == "the test process ended with status 7: cudaErrorIllegalAddress"
    kept = sorted(path.name for path in (machine / "cache" / "verified").iterdir())
    assert kept == ["linear.json", "rms_norm.json"]
    assert by_op["linear"].record == str(machine / "cache" / "verified" / "linear.json")
    assert str(by_op["linear"]) == "linear triton sm_90: passed 3 cases (0.1 s)"
    assert "FAILED: wrong" in str(by_op["flow_step"])


def test_the_whole_run_is_bounded(machine):
    results = verify.run(["linear", "rope", "silu_mul"], timeout_s=1.5)
    assert [r.passed for r in results] == [True, False, False]
    assert results[2].reason == "not reached within the time limit"


def test_records_go_where_they_are_asked_to(machine):
    (result,) = verify.run(["linear"], ["triton"], folder=machine / "out")
    assert result.record == str(machine / "out" / "linear.json")
    assert not (machine / "cache").exists()


def test_unknown_ops_and_backends(machine):
    with pytest.raises(InputError, match=r"ops must have a GPU kernel \(flow_step, .*\), got lineal"):
        verify.run(["lineal"])
    with pytest.raises(InputError, match="backend must be one of"):
        verify.run(backends=["gpu"])
    assert verify.run(backends=["cuda"]) == []


def test_the_worker_passes_a_right_kernel():
    answer = verify_kernels.check_kernel("silu_mul", "reference", device="cpu")
    assert answer["reason"] == "" and answer["cases"] > 5 and answer["skipped"] == 0


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda gate_up, out: out.copy_(gate_up[..., : out.shape[-1]] * 1.01), "against the oracle"),
        (lambda gate_up, out: None, "error nan"),
    ],
    ids=["wrong", "unwritten"],
)
def test_the_worker_fails_a_wrong_kernel(serve, function, reason):
    serve(SILU_MUL, "triton", function)
    answer = verify_kernels.check_kernel("silu_mul", "triton", device="cpu")
    assert reason in answer["reason"]


def test_the_worker_fails_a_kernel_that_changes_its_mind(serve):
    calls = []

    def noisy(gate_up, out):
        calls.append(gate_up)
        right = ops.silu_mul(gate_up, backend="reference")
        smallest = right.view(-1)[right.abs().argmin() : right.abs().argmin() + 1]
        smallest.copy_(torch.nextafter(smallest, smallest + 1) if len(calls) % 2 else smallest)
        out.copy_(right)

    serve(SILU_MUL, "triton", noisy)
    answer = verify_kernels.check_kernel("silu_mul", "triton", device="cpu")
    assert "two runs give different bits" in answer["reason"]


def test_the_worker_fails_a_kernel_that_declines_everything(serve):
    serve(SILU_MUL, "triton", lambda gate_up, out: None, Support(rule=lambda **_: "never"))
    answer = verify_kernels.check_kernel("silu_mul", "triton", device="cpu")
    assert answer["reason"] == "declined every case" and answer["skipped"] > 5


def test_the_worker_speaks_the_parents_language(capsys):
    assert sys.modules[verify.WORKER] is verify_kernels
    verify_kernels.main(["rms_norm:reference", "rope:reference"], device="cpu")
    lines = capsys.readouterr().out.splitlines()
    answers = [json.loads(line.removeprefix(verify.MARK)) for line in lines]
    assert [answer["reason"] for answer in answers] == ["", ""]
    assert set(answers[0]) == {"reason", "cases", "skipped", "seconds"}
