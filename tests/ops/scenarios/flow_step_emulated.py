"""The cuda backend's flow_step in a worker of emulated.py, which nobody used before."""

import torch

from mingcore.errors import BackendError
from mingcore.ops._core import cases, launch
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops.flow import cuda
from mingcore.testing import compare
from tests.ops.runners import emulated_device
from tests.ops.runners.protocol import report

STREAM = 0x5EED


def launches() -> None:
    """Every case, and what loading a kernel refuses; reports how many launches there were."""
    emulated_device.GPU.multi_processor_count = STREAM
    fake = launch.torch.cuda
    count = 0
    for op in ("flow_step", "flow_step_"):
        for dtype in (torch.float32, torch.bfloat16):
            for case in cases.for_op(op):
                kwargs = case.make("cpu", dtype, seed=4)
                noise = kwargs.get("noise")
                if noise is not None:
                    kwargs["noise"] = noise.float()
                count += kwargs["x"].numel() > 0
                with nan_poisoned():
                    got = compare.run(op, kwargs, backend="cuda")
                compare.check_op(op, kwargs, got)

    x = torch.randn(2, 5, 64)
    shifted = torch.randn(2 * 5 * 64 + 1)[1:].view(2, 5, 64)
    assert cuda._vectors(x, None) and not cuda._vectors(x, shifted)
    kwargs = {"x": x, "v_cond": shifted, "v_null": None, "dt": 0.5, "guidance": 1.0}
    compare.check_op("flow_step", kwargs, backend="cuda")
    count += 1

    try:
        launch.kernel("flow_step", "flow_step_float64_4", None)
        raise SystemExit("a kernel that is not there was found")
    except BackendError as error:
        assert "CUDA_ERROR_NOT_FOUND" in str(error), error
    fake.is_current_stream_capturing = lambda: True
    try:
        launch.kernel("flow_step", "flow_step_float32_1", 7)
        raise SystemExit("a kernel was loaded inside a capture")
    except BackendError as error:
        assert "before capturing" in str(error), error
    fake.is_current_stream_capturing = lambda: False
    launch.kernel("flow_step", "flow_step_float32_1", None, 100_000)
    report(launches=count, stream=STREAM)
