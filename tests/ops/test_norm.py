"""Norms, rotary embedding and routing on the CPU kernels."""

import pytest
import torch

from mingcore import _cpu, ops
from mingcore.errors import BackendError
from mingcore.ops._core.layouts import nan_poisoned, shifted, strided, transposed
from mingcore.testing import compare

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OPS = ("rms_norm", "add_rms_norm", "layer_norm", "rope", "qkv_rope", "route_topk")
LAYOUTS = (torch.Tensor.contiguous, strided, shifted)


def check(op, **kwargs):
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="cpu")
    compare.check_op(op, kwargs, got)
    return got


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_many_sizes(isa, dtype):
    for M, H in ((1, 1), (3, 2), (2, 5), (1, 15), (2, 16), (2, 17), (3, 63), (2, 130), (1, 1000)):
        x, y, w = normal(M, H).to(dtype), normal(M, H, seed=1).to(dtype), normal(H, seed=2)
        for layout in LAYOUTS:
            norm = {"x": layout(x), "weight": layout(w.to(dtype)), "eps": 1e-6}
            check("rms_norm", **norm)
            check("add_rms_norm", **norm, residual=layout(y))
            check("layer_norm", **norm, bias=layout(normal(H, seed=3).to(dtype)))
            check("layer_norm", **norm, bias=None)


def test_norms_with_weights_of_another_type(isa):
    x, w, b = normal(3, 50).bfloat16(), normal(50, seed=1), normal(50, seed=2).half()
    check("rms_norm", x=x, weight=w, eps=1e-6)
    check("layer_norm", x=x, weight=w, bias=b, eps=1e-5)


def test_norms_of_many_rows_are_the_same_bits_on_any_number_of_threads(isa):
    x, w = normal(301, 1000).bfloat16(), normal(1000)
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(
            (check("rms_norm", x=x, weight=w, eps=1e-6)[0], check("layer_norm", x=x, weight=w, bias=w, eps=1e-6)[0])
        )
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))
    for row in (0, 17, 300):
        alone = ops.rms_norm(x[row : row + 1], w, 1e-6, backend="cpu")
        assert torch.equal(alone[0], results[0][0][row])


def test_layer_norm_far_from_zero_does_not_cancel(isa):
    x = 1000 + normal(4, 333)
    check("layer_norm", x=x, weight=normal(333, seed=1), bias=None, eps=1e-5)


def test_norms_of_other_ranks_and_of_nothing(isa):
    w = normal(6)
    for shape in ((6,), (2, 3, 6), (2, 1, 3, 2, 1, 6), (0, 6), (2, 0, 6)):
        check("rms_norm", x=normal(*shape), weight=w, eps=1e-6)
    x = normal(5, 4, 6)[:, 1:3]  # rows at two distances: copied
    check("layer_norm", x=x, weight=w, bias=w, eps=1e-6)
    check("rms_norm", x=transposed(normal(5, 6)), weight=w, eps=1e-6)


@pytest.mark.parametrize("interleaved", (False, True))
def test_rope_of_many_sizes_and_layouts(isa, interleaved):
    for dtype in DTYPES:
        for B, T, heads, D in ((1, 1, 1, 2), (2, 3, 3, 6), (1, 5, 2, 30), (2, 2, 5, 34), (1, 2, 1, 70)):
            for rope_heads in {0, 1, heads}:
                angles = normal(B, T, D // 2, seed=3)
                kwargs = {"cos": strided(angles.cos()), "sin": angles.sin().contiguous()}
                kwargs.update(interleaved=interleaved, rope_heads=rope_heads)
                wide = normal(B, T, 3 * heads * D).to(dtype).unflatten(-1, (3 * heads, D))
                check("rope", x=wide[:, :, heads : 2 * heads], **kwargs)
                check("rope", x=transposed(wide[:, :, :heads].contiguous()), **kwargs)


def test_qkv_rope_of_many_tokens_on_two_threads(isa):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    angles = normal(1, 151, 32)
    kwargs = {"cos": angles.cos(), "sin": angles.sin(), "num_heads": 14, "num_kv_heads": 2}
    check("qkv_rope", qkv=strided(normal(2, 151, 18 * 64)), **kwargs)
    torch.set_num_threads(before)


def test_rope_refuses_what_it_does_not_serve():
    x, angles = normal(1, 1, 1, 4), normal(1, 1, 2).double()
    with pytest.raises(BackendError, match="cos is torch.float64; it takes float32"):
        ops.rope(x, angles, angles, backend="cpu")
    with pytest.raises(BackendError, match="float64"):
        ops.rms_norm(x.double(), torch.ones(4), 1e-6, backend="cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_routing_of_many_sizes(isa, threads, dtype):
    for T, E, K in ((1, 1, 1), (3, 2, 1), (2, 7, 7), (5, 64, 6), (2, 130, 9), (600, 33, 4)):
        logits = (2 * normal(T, E, seed=E)).to(dtype)
        for layout in (*LAYOUTS, transposed):
            for renormalize in (False, True):
                check("route_topk", logits=layout(logits), top_k=K, renormalize=renormalize)


def test_routing_orders_ties_zeros_infinities_and_nan_as_pytorch_does(isa):
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor(
        (
            (1.0, 3.0, 3.0, -0.0, 0.0, 3.0, 0.0, -0.0, 1.0),
            (-0.0, 0.0, -0.0, 0.0, -inf, -inf, -1e-40, 1e-40, 0.0),
            (-inf,) * 9,
            (-inf, -inf, 5.0, -3e38, -inf, 3e38, inf, -1.0, inf),
            (1.0, nan, 2.0, inf, nan, -inf, 0.0, -nan, 2.0),
        )
    )
    for dtype in DTYPES:
        x = logits.to(dtype)
        for K in range(1, 10):
            got = ops.route_topk(x, K, backend="cpu")
            plain = ops.route_topk(x, K, backend="reference")
            assert torch.equal(got[1], plain[1])
            torch.testing.assert_close(got[0], plain[0], equal_nan=True)


def test_bindings_name_what_does_not_fit():
    from mingcore.ops._core.cpu import array

    x, w, out = array(normal(2, 6)), array(normal(6)), array(normal(2, 6))
    with pytest.raises(ValueError, match="rms_norm: weight must be H = 6 in dimension 0"):
        _cpu.rms_norm(x, None, array(normal(5)), 1e-6, out, None, 1)
    with pytest.raises(ValueError, match="rms_norm: out must be of x's dtype"):
        _cpu.rms_norm(x, None, w, 1e-6, array(normal(2, 6).half()), None, 1)
    with pytest.raises(ValueError, match="add_rms_norm: residual must be M = 2"):
        _cpu.rms_norm(x, array(normal(3, 6)), w, 1e-6, out, out, 1)
    with pytest.raises(ValueError, match="layer_norm: x must be a matrix of rows at one distance"):
        _cpu.layer_norm(array(normal(5, 4, 6)[:, 1:3]), w, None, 1e-6, out, 1)
    with pytest.raises(ValueError, match="rope: cos must be D/2 = 3"):
        four = array(normal(1, 2, 1, 6))
        _cpu.rope(four, array(normal(1, 2, 4)), array(normal(1, 2, 4)), False, 1, four, 1)
    with pytest.raises(ValueError, match="route_topk: ids must be int32"):
        _cpu.route_topk(x, True, out, out, 1)
