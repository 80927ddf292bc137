"""Triton's flow_step and silu_mul without a GPU: what is refused, and compiled for three GPUs, with
the installed Triton and with the oldest that is supported."""

import pytest

pytest.importorskip("triton")

from tests.ops.runners import triton

SCENARIOS = "tests.ops.scenarios.elementwise_triton"
every_version = pytest.mark.parametrize("version", triton.VERSIONS)


@every_version
def test_refusals_interpreted(version, workers):
    (line,) = workers.interpreter(version)(f"{SCENARIOS}:refused")
    assert "overlaps itself" in line["refused"]


@every_version
def test_compiled_kernels_neither_spill_nor_use_local_memory(version, workers):
    lines = workers.compiler(version)(f"{SCENARIOS}:compile_all")
    assert version == "installed" or {line["triton"] for line in lines} == {triton.OLDEST}
    assert len(lines) == 3 * 3 * 2 + 3 * 3
    triton.held("elementwise", lines, exact=True)
    for line in lines:
        usage = line["usage"]
        assert usage["STACK"] == 0 and usage["LOCAL"] == 0 and 0 < usage["REG"] <= 255, line
