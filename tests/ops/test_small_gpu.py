"""Triton's norms, rotary embeddings, cache, attention over it and linear layers on a real GPU.

`make gpu` runs this.
"""

import pytest
import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned, shifted
from mingcore.testing import compare

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

OPS = ("rms_norm", "add_rms_norm", "layer_norm", "rope", "qkv_rope", "kv_write_", "attention_decode", "linear")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check(op, kwargs):
    """Within tolerance, and the same bits in the next run."""
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="triton")
    compare.check_op(op, kwargs, got)
    assert all(map(torch.equal, got, compare.run(op, kwargs, backend="triton")))
    return got


def decode(B=2, T=5, Hq=20, Hkv=20, D=64, S=4096, start=3000, dtype=torch.bfloat16, seed=0):
    d = cases.Draw("cuda", dtype, seed)
    positions = start + torch.arange(T, device="cuda") - torch.arange(B, device="cuda")[:, None]
    q, caches = d.normal(B, T, Hq, D), [d.normal(B, S, Hkv, D) for _ in range(2)]
    return {"q": q, "k_cache": caches[0], "v_cache": caches[1], "positions": positions}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", (16, 64, 80, 128, 256))
@pytest.mark.parametrize("T, Hq, Hkv", ((1, 16, 4), (5, 14, 2), (1, 4, 4), (40, 4, 1)))
def test_heads_of_attention(T, Hq, Hkv, D, dtype):
    for start, S, window in ((0, 300, None), (2900, 3000, None), (777, 70, 64)):
        kwargs = decode(2, T, Hq, Hkv, D, S, start, dtype)
        check("attention_decode", {**kwargs, "window": window})


def test_a_row_of_attention_is_the_same_alone():
    kwargs = decode(B=7)
    together = ops.attention_decode(**kwargs, backend="triton")
    for i in range(7):
        alone = {name: t[i : i + 1] for name, t in kwargs.items()}
        assert torch.equal(together[i : i + 1], ops.attention_decode(**alone, backend="triton"))


def test_caches_past_two_to_the_31_elements():
    kwargs = decode(B=1, T=1, Hq=8, Hkv=8, D=128, S=(1 << 21) + 100, start=(1 << 21) + 90)
    got = compare.run("attention_decode", {**kwargs, "window": 64}, backend="triton")
    first = kwargs["positions"].item() - 63
    near = {n: kwargs[n][:, first : first + 64].clone() for n in ("k_cache", "v_cache")}
    near |= {"q": kwargs["q"], "positions": torch.full_like(kwargs["positions"], 63)}
    compare.check_op("attention_decode", near, got)
    new = {"k": torch.ones_like(kwargs["q"]), "v": torch.ones_like(kwargs["q"])}
    caches = {n: kwargs[n] for n in ("k_cache", "v_cache")}
    ops.kv_write_(**caches, **new, positions=kwargs["positions"], backend="triton")
    assert (caches["k_cache"][:, first + 63] == 1).all()


@pytest.mark.parametrize("format", (None, "int8", "int8_dyn", "fp8"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_rows_of_linear(dtype, format):
    d = cases.Draw("cuda", dtype, 4)
    for M, K, N in ((1, 2048, 3072), (16, 1280, 2048), (17, 704, 1282), (65, 896, 9728)):
        weight = ops.pack_linear(d.matrix(N, K), format=format)
        for activation in (None, "silu", "gelu", "gelu_tanh", "swiglu"):
            kwargs = {"x": d.normal(M, K), "weight": weight, "bias": d.normal(N)}
            width = N // 2 if activation == "swiglu" else N
            kwargs |= {"activation": activation, "residual": d.normal(M, width)}
            try:
                check("linear", kwargs)
            except BackendError as error:
                assert format == "fp8" and "8-bit floats" in str(error)


def test_a_row_of_linear_is_the_same_alone():
    d = cases.Draw("cuda", torch.bfloat16, 5)
    x, weight = d.normal(16, 2048), d.matrix(3072, 2048)
    together = ops.linear(x, weight, backend="triton")
    for M in (1, 2, 5, 15):
        assert torch.equal(together[:M], ops.linear(x[:M], weight, backend="triton"))


def test_awkward_tensors():
    d = cases.Draw("cuda", torch.bfloat16, 6)
    x, w = d.normal(5, 1280), d.near_one(1280)
    check("rms_norm", {"x": shifted(x), "weight": shifted(w), "eps": 1e-6})
    check("linear", {"x": shifted(x), "weight": shifted(d.matrix(96, 1280))})
    kwargs = decode(B=1, S=100, start=90)
    check("attention_decode", {**kwargs, "q": shifted(kwargs["q"])})
    check("attention_decode", {**kwargs, "k_cache": shifted(kwargs["k_cache"])})


def test_one_layer_in_a_graph():
    """The small ops of a decoder layer, captured; replays follow positions and inputs."""
    d = cases.Draw("cuda", torch.bfloat16, 7)
    B, H, Hq, Hkv, D, S = 3, 512, 8, 2, 64, 128
    x, residual = d.normal(B, 1, H), d.normal(B, 1, H)
    qkv, dense, norm = d.matrix((Hq + 2 * Hkv) * D, H), d.matrix(H, Hq * D), d.near_one(H)
    cos, sin = d.angles(B, 1, D // 2)
    caches = [torch.zeros(B, S, Hkv, D, dtype=d.dtype, device="cuda") for _ in range(2)]
    positions = torch.tensor([[0], [5], [130]], device="cuda")

    def layer(k_cache, v_cache):
        with ops.use_backend("triton"):
            y, kept = ops.add_rms_norm(x, residual, norm, 1e-6)
            q, k, v = ops.qkv_rope(ops.linear(y, qkv), cos, sin, Hq, Hkv)
            ops.kv_write_(k_cache, v_cache, k, v, positions)
            a = ops.attention_decode(q, k_cache, v_cache, positions)
            return ops.linear(a.view(B, 1, -1), dense, residual=kept)

    layer(*(cache.clone() for cache in caches))  # compiles
    own = [cache.clone() for cache in caches]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(*own)
    for _ in range(20):
        x.copy_(d.normal(B, 1, H))
        graph.replay()
        expected = layer(*caches)
        assert torch.equal(out, expected)
        assert all(map(torch.equal, own, caches))
        positions += 1


@pytest.mark.parametrize("window", (None, 32))
def test_flash_attn_for_prefill(window):
    if reason := ops.why_not("attention_prefill", "flash", *_fresh(), True, window or 0, 0.125):
        pytest.skip(reason)
    q, k, v = _fresh()
    kwargs = {"q": q, "k": k, "v": v, "window": window}
    got = compare.run("attention_prefill", kwargs, backend="flash")
    compare.check_op("attention_prefill", kwargs, got)


def _fresh():
    d = cases.Draw("cuda", torch.bfloat16, 8)
    return d.normal(1, 300, 16, 64), d.normal(1, 300, 4, 64), d.normal(1, 300, 4, 64)
