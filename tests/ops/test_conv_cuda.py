"""causal_conv without a GPU: emulated, what it is compiled to, its tiles, its reasons to decline.
test_compiled.py compiles it.
"""

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("cuda.bindings")

from mingcore import ops
from mingcore.ops._core import launch
from mingcore.ops.conv import cuda as cuda_conv
from mingcore.ops.conv import cuda_plan as cuda_conv_plan
from mingcore.ops.conv.cuda_plan import Shape, plan
from tests.ops.support import refusal

H200 = 132, 232448
A100 = 108, 166912


def emulated(workers, function, **args):
    """Copies as late as they may be, poisoned until then; shared memory ends at a page's end."""
    reported, lines = workers.emulator().logged(f"tests.ops.scenarios.conv_emulated:{function}", **args)
    launched = [line.split()[1:] for line in lines if line[:6] == "launch"]
    assert {line[1] for line in launched} == {str(cuda_conv_plan.THREADS)}
    return reported


def test_the_named_cases_reach_every_kind_of_plan(workers):
    (kinds,) = workers.emulator()("tests.ops.scenarios.conv_emulated:plans")
    assert len(kinds) == 3 and all(kinds.values())


def test_emulated_deep_products(workers):
    emulated(workers, "deep")


def test_emulated_streams(workers):
    emulated(workers, "any_convolution", seeds=[4])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 40, 5))
def test_emulated_any_convolution(workers, first):
    emulated(workers, "any_convolution", seeds=list(range(first, first + 5)))


@pytest.mark.slow
def test_ptx_has_matrix_products_and_asynchronous_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("MINGCORE_CACHE", str(tmp_path))
    ptx = launch.compiled("causal_conv", 999).decode()
    kernels = re.split(r"\.visible \.entry ", ptx)[1:]
    assert len(kernels) == 12
    for kernel in kernels:
        name = kernel[: kernel.index("(")]
        *_, kind, dtype = name.split("_")
        products = re.findall(r"mma\.sync\S*f32\.(\w+)\.\w+\.f32", kernel)
        dense = kind in ("many", "few")
        expected = {"bfloat16": {"bf16"}, "float16": {"f16"}, "float32": set()}[dtype]
        assert set(products) == (expected if dense else set()), name
        assert ("ldmatrix" in kernel) == (dense and dtype != "float32"), name
        assert ("cp.async.cg" in kernel) == dense, name
        assert kind != "depthwise" or "ld.global.v4" in kernel or "ld.global.nc.v4" in kernel, name
        assert ".local" not in kernel and ".f64" not in kernel, name


def shape(**sizes) -> Shape:
    usual = {"B": 1, "T": 1280, "C": 192, "N": 192, "groups": 1, "taps": 1, "stride": 1}
    usual |= {"dilation": 1, "up": 0, "span": 0, "size": 2, "fast": True, "parts": 1}
    return Shape(**{**usual, **sizes})


def test_small_products_are_spread_and_large_ones_take_large_tiles():
    small = plan(shape(), *H200)
    assert small.kind == "few" and small.blocks >= 100
    large = plan(shape(T=16000, C=768, N=768), *H200)
    assert (large.kind, large.rows, large.cols, large.stages) == ("many", 128, 128, 4)
    up = plan(shape(T=32, C=1536, N=768, taps=16, up=8, span=1, fast=False, parts=2), *H200)
    assert (up.kind, up.blocks, up.cols, up.times_all) == ("few", 192, 8, 1)


@pytest.mark.parametrize("machine", (H200, A100))
def test_every_tile_fits_and_all_outputs_are_covered(machine):
    made = declined = 0
    for up, k, stride, dilation, C, T, parts in [
        (up, k, stride, dilation, C, T, parts)
        for up in (0, 1)
        for k in (1, 2, 3, 7, 10, 16)
        for stride in (1, 2, 5, 8)
        for dilation in (1, 9, 27)
        for C in (1, 5, 96, 512)
        for T in (1, 7, 333, 20000)
        for parts in (1, 2)
    ]:
        span = (k - 1) * dilation // (stride if up else 1)
        sizes = {"C": C, "N": C, "T": T, "taps": k, "dilation": dilation, "span": span}
        strides = {"up": stride * up, "stride": 1 if up else stride, "parts": parts}
        found = plan(shape(**sizes, **strides, groups=7), *machine)
        if isinstance(found, str):
            declined += 1
            assert up and span > 100 and C > 1, (found, sizes, strides)
            continue
        made += 1
        assert found.shared_bytes <= machine[1] and found.shared_bytes % 16 == 0
        assert found.times_all * found.step * (stride if up and C > 1 else 1) >= T
        if C == 1:
            assert found.rows_all * found.rows >= 7 and found.rows * found.cols <= 256
        else:
            assert found.rows_all * found.channels >= C and found.pitch // 8 % 2 == 1
            assert found.channels * (k if up else 1) <= found.rows
    assert made > 50 * declined / 10 > 0


@pytest.fixture
def any_device(monkeypatch):
    """Without a GPU: the architecture is granted, the operands are looked at."""
    there = SimpleNamespace(shared_memory_per_block_optin=232448, multi_processor_count=132)
    monkeypatch.setattr(launch, "unavailable_reason", lambda op, device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: there)
    return there


def declined(op="causal_conv1d", in_place=False, **kwargs) -> str:
    x = kwargs.pop("x", torch.zeros(2, 8, 16))
    weight = kwargs.pop("weight", torch.zeros(8, 8, 3))
    if in_place:
        state = kwargs.pop("state", ops.ConvState.start(2, 8, 2))
        op, kwargs = op + "_", {"out": torch.zeros(2, 8, 16), "state": state, **kwargs}
    return refusal(op, "cuda", x, weight=weight, **kwargs)


def test_what_it_declines(any_device):
    half = torch.zeros(2, 8, 16, dtype=torch.bfloat16)
    assert "weight is torch.float32, x torch.bfloat16; it takes x's" in declined(x=half)
    double = torch.zeros(2, 8, 16, dtype=torch.float64)
    assert "x is torch.float64; it takes float32, bfloat16 and" in declined(x=double)
    assert "residual is torch.float64" in declined(residual=double)
    trained = torch.zeros(8, 8, 3, requires_grad=True)
    assert "weight requires a gradient" in declined(weight=trained)
    panels = ops.pack_conv(torch.zeros(8, 8, 3), backend="cpu")
    assert "the weights are in layout 'conv_panels'; it takes 'rows'" in declined(weight=panels)
    long = torch.zeros(8, 8, 200)
    assert "has 200 taps; transposed it takes up to 128" in declined("causal_conv_transpose1d", weight=long, stride=100)
    wide = declined("causal_conv_transpose1d", weight=torch.zeros(8, 8, 7), dilation=27)
    assert "an output is made of up to 163 times" in wide
    any_device.shared_memory_per_block_optin = 101376
    far = declined(weight=torch.zeros(8, 8, 3), dilation=9000)
    assert "reaches over 18001 inputs; those of a tile do not fit in 101376 bytes" in far
    assert "inputs, more than 101376 bytes hold" in declined(weight=torch.zeros(8, 1, 3), groups=8, dilation=20000)


def test_what_it_declines_in_place(any_device):
    state = ops.ConvState.start(2, 8, 2)
    state.context = state.context.transpose(0, 1).contiguous().transpose(0, 1)
    assert "context has strides (2, 4, 1); it takes a contiguous one" in declined(in_place=True, state=state)
    assert "out overlaps itself" in declined(in_place=True, out=torch.zeros(1, 8, 16).expand(2, 8, 16))


def test_copies_of_16_bytes_need_their_alignment():
    even = torch.zeros(2, 4, 64)
    assert cuda_conv._by_eights(even) and cuda_conv._by_eights(even[:1, :, 8:])
    assert not cuda_conv._by_eights(even[:, :, 1:]) and not cuda_conv._by_eights(even[:, :, ::2])
    assert not cuda_conv._by_eights(torch.zeros(2, 4, 63))
    assert cuda_conv._by_eights(torch.zeros(1, 1, 63))
