"""The GPU kernels of flow_step and silu_mul on a real GPU. `make gpu` runs them."""

import threading

import pytest
import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core.layouts import nan_poisoned, strided
from mingcore.testing import compare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS = ("cuda", "triton")
KERNELS = [(op, name) for op in ("flow_step", "flow_step_") for name in BACKENDS]
KERNELS.append(("silu_mul", "triton"))


def arguments(B, P, C, dtype=torch.bfloat16, guided=True, noisy=True, seed=0):
    d = torch.Generator("cuda").manual_seed(seed)

    def normal(*shape, dtype=torch.float32):
        return torch.randn(shape, generator=d, device="cuda").to(dtype)

    return {
        "x": normal(B, P, C),
        "v_cond": normal(B, P, C, dtype=dtype),
        "v_null": normal(B, P, C, dtype=dtype) if guided else None,
        "dt": 0.07,
        "guidance": 1 + torch.rand(B, generator=d, device="cuda"),
        "noise": normal(B, P, C) if noisy else None,
        "noise_scale": torch.rand(B, generator=d, device="cuda"),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("guided", (False, True))
@pytest.mark.parametrize("noisy", (False, True))
def test_sizes(backend, dtype, guided, noisy):
    for B, P, C in ((1, 5, 64), (1, 1, 1), (3, 7, 13), (2, 3, 6), (64, 5, 64), (300, 11, 257)):
        kwargs = arguments(B, P, C, dtype, guided, noisy)
        for op in ("flow_step", "flow_step_"):
            with nan_poisoned():
                got = compare.run(op, kwargs, backend=backend)
            compare.check_op(op, kwargs, got)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slices_odd_addresses_and_strides(backend):
    for C in (64, 63):
        kwargs = arguments(2, 5, C)
        both = torch.full((4, 11, C), float("nan"), device="cuda", dtype=torch.bfloat16)
        both[:2, 6:], both[2:, 6:] = kwargs["v_cond"], kwargs["v_null"]
        sliced = {**kwargs, "v_cond": both[:2, 6:], "v_null": both[2:, 6:]}
        sliced["x"], sliced["noise"] = strided(kwargs["x"]), strided(kwargs["noise"], gap=1)
        with nan_poisoned():
            got = compare.run("flow_step", sliced, backend=backend)
        compare.check_op("flow_step", kwargs, got)
        buffer = torch.full((2, 5, C + 9), 7.0, device="cuda")
        x = buffer[..., 3 : 3 + C].copy_(kwargs["x"])
        ops.flow_step_(**{**kwargs, "x": x}, backend=backend)
        compare.check_op("flow_step", kwargs, (x.contiguous(),))
        assert (buffer[..., :3] == 7).all() and (buffer[..., 3 + C :] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_replay_follows_its_inputs(backend):
    kwargs = arguments(2, 5, 64)
    compare.run("flow_step", kwargs, backend=backend)  # loads the kernel
    state = kwargs["x"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.flow_step(**kwargs, backend=backend)
        ops.flow_step_(**{**kwargs, "x": state}, backend=backend)
    for seed in range(3):
        fresh = arguments(2, 5, 64, seed=10 + seed)
        for name, tensor in kwargs.items():
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(fresh[name])
        state.copy_(fresh["x"])
        out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        expected = compare.run("flow_step", fresh, backend=backend)[0]
        assert torch.equal(out, expected) and torch.equal(state, expected)
        compare.check_op("flow_step", fresh, (out,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_current_stream_and_a_new_thread(backend):
    kwargs = arguments(64, 5, 64)
    expected = compare.run("flow_step", kwargs, backend=backend)[0]
    answers = {}

    def work():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            x = kwargs["x"].clone()
            for _ in range(50):  # late writes: the launch must queue behind them
                x.copy_(torch.randn(4096, 4096, device="cuda").mean() * 0 + kwargs["x"])
            answers["out"] = ops.flow_step(**{**kwargs, "x": x}, backend=backend)
        stream.synchronize()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(answers["out"], expected)


def test_nvrtc_gives_what_the_fatbin_gives(monkeypatch, tmp_path):
    from mingcore.ops._core import launch

    if launch.fatbin("flow_step") is None:
        pytest.skip("built without fatbins: NVRTC is what the other tests ran")
    kwargs = arguments(3, 5, 64)
    built = compare.run("flow_step", kwargs, backend="cuda")[0]
    monkeypatch.setenv("MINGCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(launch, "fatbin", lambda op: None)
    for cached in (launch.kernel, launch._library):
        cached.cache_clear()
    assert torch.equal(compare.run("flow_step", kwargs, backend="cuda")[0], built)
    assert list((tmp_path / "cuda").glob("flow_step.*.cubin"))
    for cached in (launch.kernel, launch._library):
        cached.cache_clear()


def test_reasons():
    kwargs = arguments(2, 5, 8)
    with pytest.raises(BackendError, match=r"v_null is torch.float32, v_cond torch.bfloat16"):
        ops.flow_step(**{**kwargs, "v_null": kwargs["v_null"].float()}, backend="cuda")
    with pytest.raises(BackendError, match="overlaps itself"):
        ops.flow_step_(**{**kwargs, "x": kwargs["x"][:1].expand(2, 5, 8)}, backend="cuda")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tensor_on_another_device_than_the_current(backend):
    kwargs = {
        name: value.to("cuda:1") if isinstance(value, torch.Tensor) else value
        for name, value in arguments(2, 5, 64).items()
    }
    with torch.cuda.device(0):
        compare.check_op("flow_step", kwargs, backend=backend)
