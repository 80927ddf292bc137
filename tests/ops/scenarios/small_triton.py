"""Triton's norms, rotary embeddings, cache, attention over it and small linear layers without a GPU:
beyond the named cases, and as binaries.

`interpret`: against the oracle, all of it or every third (`step`). `compile_all`: the very launches
that the real model's shapes lead to, recorded on meta tensors and compiled for three GPUs, every
tile and type; without `everything` a representative few, for Hopper.
"""

from functools import partial

import torch

from mingcore import ops
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops._core.op import OPS as DECLARED
from mingcore.testing import compare
from mingcore_kernels.attention import attention_decode, kv_write
from mingcore_kernels.gemm import linear
from mingcore_kernels.lib.quantise import quantised_rows
from mingcore_kernels.lib.target import assumed
from mingcore_kernels.norm import norms
from mingcore_kernels.rotary import rope
from tests.ops.runners.triton_launches import compiled, meta, recorded, report
from tests.ops.support import unsupported_reason


def interpret(step: int) -> None:
    d = cases.Draw("cpu", torch.float16, 3)
    _linear_formats(d, step)
    _rows_are_their_own(d)
    _shares(d, step)
    _refused(d)


def check(op: str, kwargs: dict, **labels) -> tuple[torch.Tensor, ...]:
    if hasattr(kwargs.get("weight"), "as_rows"):  # packed for the CPU, where the tensors are
        kwargs = {**kwargs, "weight": kwargs["weight"].as_rows()}
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="triton")
    compare.check_op(op, kwargs, got)
    assert all(map(torch.equal, got, compare.run(op, kwargs, backend="triton"))), f"{op} {labels}"
    report(op=op, **labels)
    return got


def _linear_formats(d: cases.Draw, step: int) -> None:
    """Quantised weights under every activation, few rows and many."""
    formats = (
        (1, "int8", None),
        (16, "int8", "swiglu"),
        (17, "int8", "gelu"),
        (3, "fp8", "silu"),
        (40, "fp8", "swiglu"),
        (2, "int8_dyn", "gelu_tanh"),
        (70, "int8_dyn", "swiglu"),
    )
    for M, format, activation in formats[step // 2 :: step]:
        weight = ops.pack_linear(d.matrix(38, 83), format=format, backend="reference")
        kwargs = {"x": d.normal(M, 83), "weight": weight, "bias": d.normal(38)}
        width = 19 if activation == "swiglu" else 38
        kwargs |= {"activation": activation, "residual": d.normal(M, width)}
        check("linear", kwargs, case=f"{format}_{activation}_m{M}", dtype=str(d.dtype))


def _rows_are_their_own(d: cases.Draw) -> None:
    """A row's bits are the same alone and among others, on the path for few rows."""
    x, weight = d.normal(16, 600), d.matrix(16, 600)
    together = ops.linear(x, weight, activation="silu", backend="triton")
    for i in (0, 7, 15):
        alone = ops.linear(x[i], weight, activation="silu", backend="triton")
        assert torch.equal(together[i], alone)
    q, caches = d.normal(3, 2, 4, 16), (d.normal(3, 200, 2, 16), d.normal(3, 200, 2, 16))
    positions = torch.tensor([[3, 4], [520, 521], [-1, 130]])
    together = ops.attention_decode(q, *caches, positions, backend="triton")
    for i in range(3):
        one = (t[i : i + 1] for t in (q, *caches, positions))
        assert torch.equal(together[i : i + 1], ops.attention_decode(*one, backend="triton"))
    report(op="attention_decode", case="alone")


def _shares(d: cases.Draw, step: int) -> None:
    """Any number of shares, of which some may be empty, is within the tolerance."""
    places = ((0, 300, 290), (150, 160, 1000), (0, 300, 2), (0, 129, 4000))
    for dtype in (torch.float16, torch.float32)[::step]:
        d.dtype = dtype
        for window, S, start in places[step // 2 :: step]:
            positions = torch.stack([torch.arange(start, start + 5), torch.arange(-2, 3)])
            kwargs = {"q": d.normal(2, 5, 4, 24), "positions": positions, "window": window or None}
            kwargs |= {"k_cache": d.normal(2, S, 2, 24), "v_cache": d.normal(2, S, 2, 24)}
            flat = [*kwargs.values()]
            check("attention_decode", kwargs, case=f"s{S}_w{window}_p{start}", dtype=str(dtype))
            one = torch.empty_like(flat[0])
            q, caches = kwargs["q"], (kwargs["k_cache"], kwargs["v_cache"])
            for shares in (1, 2, 7):
                got = torch.full_like(one, float("nan"))
                attention_decode.attention_decode(q, *caches, positions, window, 24**-0.5, got, shares=shares)
                compare.check_op("attention_decode", kwargs, (got,))
                assert (got[positions < 0] == 0).all()


def _refused(d: cases.Draw) -> None:
    d.dtype = torch.float16
    x, cache = d.normal(1, 1, 2, 512), d.normal(1, 4, 2, 512)
    position, half = torch.zeros(1, 1, dtype=torch.int64), d.normal(1, 1, 256)
    cos = half.double()
    small = cache[..., :8]
    for op, args in (
        ("attention_decode", (x, cache, cache, position, 0, 1.0, None, None)),
        ("kv_write_", (small[:, :1].expand(1, 4, 2, 8), small, small[:, :1], small[:, :1], position)),
        ("rope", (x, cos, cos, False, 2)),
        ("rms_norm", (d.normal(1, 20000), d.normal(20000), 1e-6)),
        ("layer_norm", (half.double(), half[0, 0], None, 1e-6)),
        ("linear", (half, d.matrix(256, 6).t(), None, None, "none", "rows", 6, None, "")),
        ("linear", (half, d.matrix(6, 256).float(), None, None, "none", "rows", 6, None, "")),
    ):
        report(refused=unsupported_reason(DECLARED[op], "triton", args))


def attention(B: int, T: int, Hq: int, Hkv: int, D: int, S: int, window: int, dtype) -> None:
    q, caches = meta(B, T, Hq, D, dtype=dtype), (meta(B, S, Hkv, D, dtype=dtype),) * 2
    positions = meta(B, T, dtype=torch.int64)
    attention_decode.attention_decode(q, *caches, positions, window, D**-0.5, meta_like(q))
    scale, eight = meta(B, S, Hkv, 1, dtype=torch.float32), meta(B, S, Hkv, D, dtype=torch.int8)
    attention_decode.attention_decode(
        q, eight, eight, positions, window, D**-0.5, meta_like(q), k_scale=scale, v_scale=scale
    )
    kv_write.kv_write(*caches, *(meta(B, T, Hkv, D, dtype=dtype),) * 2, positions)


def meta_like(x: torch.Tensor) -> torch.Tensor:
    return meta(*x.shape, dtype=x.dtype)


def rotated(B: int, T: int, Hq: int, Hkv: int, D: int, interleaved: bool, dtype) -> None:
    x, angles = meta(B, T, Hq + 2 * Hkv, D, dtype=dtype), meta(1, T, D // 2, dtype=torch.float32)
    kv = (meta(B, T, Hkv, D, dtype=dtype),) * 2 if Hkv else None
    rope.rope(x, angles, angles, interleaved, Hq, meta(B, T, Hq, D, dtype=dtype), kv)


def product(M: int, K: int, N: int, format: str, activation: str, dtype) -> None:
    stored = {"int8": torch.int8, "int8_dyn": torch.int8, "fp8": torch.float8_e4m3fn}.get(format)
    x, w, x_scale = meta(M, K, dtype=dtype), meta(N, K, dtype=stored or dtype), None
    if format == "int8_dyn":
        x, x_scale = quantised_rows(x)
    bias, width = meta(N, dtype=dtype), N // 2 if activation == "swiglu" else N
    out = meta(M, width, dtype=dtype)
    scale = meta(N, dtype=torch.float32) if stored else None
    linear.linear(x, w, bias, out, activation, out, scale=scale, x_scale=x_scale)


def launches(capability: int, everything: bool) -> None:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    formats = ["bf16", "int8", "int8_dyn"] + (["fp8"] if capability >= 89 else [])
    for dtype in (bf16, fp16, fp32) if everything else (bf16,):
        x, w = meta(5, 1280, dtype=dtype), meta(1280, dtype=dtype)
        norms.layer_norm(x, w, w, 1e-5, meta_like(x))
        x, w = meta(1, 2048, dtype=dtype), meta(2048, dtype=dtype)
        norms.rms_norm(x, w, 1e-6, meta_like(x))
        norms.add_rms_norm(x, meta_like(x), w, 1e-6, meta_like(x), meta_like(x))
        rotated(1, 1, 16, 4, 128, False, dtype)
        rotated(1, 5, 20, 20, 64, True, dtype)
        attention(1, 1, 16, 4, 128, 4096, 0, dtype)
        attention(1, 5, 20, 20, 64, 4096, 0, dtype)
        attention(1, 5, 14, 2, 64, 37, 32, dtype)
        if everything:
            norms.layer_norm(
                *(meta(3, 16384, dtype=dtype), *(meta(16384, dtype=dtype),) * 2), 1e-5, meta(3, 16384, dtype=dtype)
            )
            rotated(2, 11, 16, 0, 64, True, dtype)
            rotated(2, 3, 3, 0, 1024, False, dtype)
            for D in (64, 128, 256) if dtype != fp16 else (16, 80):
                for T in (1, 3, 40):
                    attention(2, T, 14, 2, D, 3000, 32 * (T % 2), dtype)
    products = ((1, 2048, 3072, "none"), (5, 896, 9728, "swiglu"), (40, 1280, 5120, "gelu"))
    for (M, K, N, activation), format in zip(products, ("bf16", "int8", "fp8")):
        if format in formats:
            product(M, K, N, format, activation, bf16)
    if everything:
        for M in (1, 20, 40, 100):
            for format in formats:
                product(M, 1280, 2048, format, "swiglu", bf16)
                product(M, 1344, 1282, format, "gelu", bf16)
            product(M, 1280, 2048, "fp16", "silu", fp16)
            product(M, 1280, 2048, "fp32", "gelu_tanh", fp32)
            product(M, 1280, 2048, "int8", "none", fp32)


def compile_all(everything: bool, registers: int | None = None) -> None:
    """registers: no kernel gets more, and only the linear ones are compiled."""
    for capability in (80, 90, 100) if everything else (90,):
        with assumed(capability, processors=132):
            found = recorded(partial(launches, capability, everything))
        for kernel, signature, constants, *rest in found:
            if registers is not None:
                if kernel.__name__ != "_linear_kernel":
                    continue
                rest[-1]["maxnreg"] = registers
            launch = kernel, signature, constants, *rest
            ptx, made = compiled(*launch, capability=capability)
            blocks = "MNK" if "BLOCK_M" in constants else "RSD"
            report(
                **made,
                types=[signature.get("x") or signature.get("q"), signature.get("w")],
                blocks=[constants.get(f"BLOCK_{letter}") for letter in blocks],
                copies16=ptx.count("cp.async.cg.shared.global"),
                loads16=ptx.count("ld.global.v4"),
            )
