"""silu_mul and flow_step on the CPU kernels."""

import pytest
import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core.layouts import nan_poisoned, shifted, strided
from mingcore.testing import compare

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M, I", ((1, 1), (3, 5), (2, 1024), (5, 1025), (9, 3000), (0, 4), (4, 0)))
def test_silu_mul_sizes(isa, threads, dtype, M, I):
    gate_up = 4 * torch.randn(M, 2 * I, generator=torch.Generator().manual_seed(I)).to(dtype)
    for layout in (torch.Tensor.contiguous, strided, shifted):
        kwargs = {"gate_up": layout(gate_up)}
        with nan_poisoned():
            got = compare.run("silu_mul", kwargs, backend="cpu")
        compare.check_op("silu_mul", kwargs, got)


def flow_arguments(B, P, C, dtype, guided, noisy, seed=0):
    d = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(B, P, C, generator=d),
        "v_cond": torch.randn(B, P, C, generator=d).to(dtype),
        "v_null": torch.randn(B, P, C, generator=d).to(dtype) if guided else None,
        "dt": 0.07,
        "guidance": 1 + torch.rand(B, generator=d),
        "noise": torch.randn(B, P, C, generator=d) if noisy else None,
        "noise_scale": torch.rand(B, generator=d),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guided", (False, True))
@pytest.mark.parametrize("noisy", (False, True))
@pytest.mark.parametrize("B, P, C", ((1, 5, 64), (3, 1, 1), (2, 7, 13), (70, 5, 64), (0, 5, 64)))
def test_flow_step(isa, threads, B, P, C, dtype, guided, noisy):
    kwargs = flow_arguments(B, P, C, dtype, guided, noisy)
    for op in ("flow_step", "flow_step_"):
        with nan_poisoned():
            got = compare.run(op, kwargs, backend="cpu")
        compare.check_op(op, kwargs, got)


def test_flow_step_takes_slices_of_the_network_output(isa):
    kwargs = flow_arguments(2, 5, 64, torch.bfloat16, True, True)
    both = torch.full((4, 11, 64), float("nan"), dtype=torch.bfloat16)
    both[:2, 6:], both[2:, 6:] = kwargs["v_cond"], kwargs["v_null"]
    sliced = {**kwargs, "v_cond": both[:2, 6:], "v_null": both[2:, 6:]}
    expected = compare.run("flow_step", kwargs, backend="cpu")[0]
    assert torch.equal(compare.run("flow_step", sliced, backend="cpu")[0], expected)


def test_flow_step_in_place_leaves_the_rest_of_the_buffer(isa):
    kwargs = flow_arguments(2, 5, 10, torch.float32, True, True)
    buffer = torch.full((2, 5, 16), 7.0)
    x = buffer[..., 3:13].copy_(kwargs["x"])
    ops.flow_step_(**{**kwargs, "x": x}, backend="cpu")
    assert torch.equal(x, compare.run("flow_step", kwargs, backend="cpu")[0])
    assert (buffer[..., :3] == 7).all() and (buffer[..., 13:] == 7).all()


def test_flow_step_refuses_an_overlapping_state():
    kwargs = flow_arguments(2, 5, 8, torch.float32, False, False)
    with pytest.raises(BackendError, match="overlaps itself"):
        ops.flow_step_(**{**kwargs, "x": torch.zeros(1, 5, 8).expand(2, 5, 8)}, backend="cpu")
