"""Triton's routing and expert kernels without a GPU: beyond the named cases, and as binaries.

`interpret`: against the oracle. `compile_all`: the very launches that the real model's shapes lead
to, recorded on meta tensors and compiled for three GPUs; with `everything` every format and number
of tokens, else a representative few.
"""

from functools import partial

import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.ops.moe.cases import _moe
from mingcore.testing import compare
from mingcore_kernels.gemm import grouped_gemm
from mingcore_kernels.lib.target import assumed
from mingcore_kernels.moe import moe_mlp
from mingcore_kernels.routing import routing
from tests.ops.runners.triton_launches import compiled, meta, recorded, report

CAPABILITIES = (80, 90, 100)


def interpret() -> None:
    draw = cases.Draw("cpu", torch.float16, 3)
    for T in (0, 1, 3, 65):
        for only in (None, 1):
            kwargs = cases_moe(draw, T, only)
            check("moe_mlp", kwargs, again=True, case=f"t{T}_{only}", dtype=str(draw.dtype))
    repeated = cases_moe(draw, 9, None)
    repeated["ids"][::2, 1] = repeated["ids"][::2, 0]  # an expert twice in one token
    check("moe_mlp", repeated, case="repeated", dtype=str(draw.dtype))
    far = torch.empty_strided((2, 8, 32), ((1 << 31) + 64, 32, 1), dtype=torch.float16)
    far.copy_(draw.matrix(2, 8, 32))  # addresses past 2^31 elements, of which two pages are real
    kwargs = {"x": draw.normal(6, 32), "w": far, "offsets": torch.tensor([0, 2, 6]).int()}
    check("grouped_gemm", kwargs, case="past_2_31", dtype=str(draw.dtype))
    try:
        ops.grouped_gemm(draw.normal(6, 32), far.float(), kwargs["offsets"], backend="triton")
    except BackendError as error:
        report(refused=str(error))


def cases_moe(draw: cases.Draw, T: int, only: int | None) -> dict:
    """Five experts, H and I no multiples of anything, blocks of every kind only partly filled."""
    return _moe(draw, T, K=1 if only else 2, E=5, H=70, I=44, shared=50, only=only)


def check(op: str, kwargs: dict, again: bool = False, **labels) -> None:
    if hasattr(kwargs.get("experts"), "as_rows"):  # packed for the CPU, where the tensors are
        kwargs = {**kwargs, "experts": kwargs["experts"].as_rows()}
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="triton")
        twice = compare.run(op, kwargs, backend="triton") if again else got
    compare.check_op(op, kwargs, got)
    assert all(torch.equal(a, b) for a, b in zip(got, twice)), f"{op} {labels}: two runs differ"
    report(op=op, **labels)


def moe(T: int, format: str, x: torch.dtype = torch.bfloat16) -> None:
    """The launches of one layer of the released model."""
    E, K, H, I, I_s = 64, 6, 2048, 1408, 2816
    stored = {"int8": torch.int8, "int8_dyn": torch.int8, "fp8": torch.float8_e4m3fn}
    dtype, f32 = stored.get(format, x), torch.float32
    scales = (None,) * 4
    if format in stored:
        scales = [meta(*s, dtype=f32) for s in ((E, 2 * I), (E, H), (2 * I_s,), (H,))]
    moe_mlp.moe_mlp(
        meta(T, H, dtype=x),
        meta(E, 2 * I, H, dtype=dtype),
        meta(E, H, I, dtype=dtype),
        meta(T, K, dtype=f32),
        meta(T, K, dtype=torch.int32),
        meta(2 * I_s, H, dtype=dtype),
        meta(H, I_s, dtype=dtype),
        *scales,
        format == "int8_dyn",
        meta(T, H, dtype=x),
    )


def launches(capability: int, everything: bool) -> None:
    formats = ["bf16", "int8", "int8_dyn"] + (["fp8"] if capability >= 89 else [])
    tokens = {"bf16": (1, 4, 4096), "int8_dyn": (4096,)}
    if capability == 90:
        tokens |= {"int8": (4096,), "fp8": (4096,)}
    if everything:
        tokens = dict.fromkeys(formats, (1, 2, 17, 300, 640, 4096))
        moe(4096, "fp16", torch.float16)
        moe(1, "fp32", torch.float32)
        moe(640, "fp32", torch.float32)
    for format, counts in tokens.items():
        for T in counts:
            moe(T, format)
    moe(64, "fp32", torch.float32)
    i32, f32 = torch.int32, torch.float32
    routing.route_topk(meta(300, 64), True, meta(300, 6, dtype=f32), meta(300, 6, dtype=i32))
    w, offsets = meta(64, 1408, 2048), meta(65, dtype=i32)
    grouped_gemm.grouped_gemm(meta(4096, 2048), w, offsets, meta(4096, 1408))


def compile_all(everything: bool = False) -> None:
    for capability in CAPABILITIES:
        with assumed(capability, processors=132):
            found = recorded(partial(launches, capability, everything))
        for kernel, signature, constants, *rest in found:
            launch = kernel, signature, constants, *rest
            ptx, made = compiled(*launch, capability=capability)
            report(
                **made,
                types=[signature.get("x"), signature.get("w")],
                blocks=[constants.get(f"BLOCK_{letter}") for letter in "MNK"],
                copies16=ptx.count("cp.async.cg.shared.global"),
                loads16=ptx.count("ld.global.v4"),
            )
