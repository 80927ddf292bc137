"""Run by test_triton_moe.py in a process of its own, once per Triton version.

`interpret [few]`: the kernels against the oracle; `few` takes every third named case.
`compile [all]`: the very launches that the real model's shapes lead to, recorded on meta tensors
and compiled for three GPUs; `all` takes every format and number of tokens, else a representative
few. Prints one line of JSON per result.
"""

import os
import sys
from functools import partial

if sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
from triton_launches import compiled, loops_with_new_numpy, meta, recorded, say

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core import cases
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.testing import compare
from mingcore_kernels.gemm import grouped_gemm
from mingcore_kernels.lib.target import assumed
from mingcore_kernels.moe import moe_mlp
from mingcore_kernels.routing import routing

OPS = ("route_topk", "sort_by_expert", "grouped_gemm", "moe_mlp")
CAPABILITIES = (80, 90, 100)


def interpret(step: int) -> None:
    loops_with_new_numpy()
    for op in OPS:
        for i, case in enumerate(cases.for_op(op)[::step]):
            if op != "sort_by_expert" and case.dims.get("T", 0) > 128:
                continue
            dtype = (torch.float32, torch.float16)[i % 2]  # the interpreter is slow: in turns
            check(op, case.make("cpu", dtype, seed=2), case=case.name, dtype=str(dtype))
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
        say(refused=str(error))


def cases_moe(draw: cases.Draw, T: int, only: int | None) -> dict:
    """Five experts, H and I no multiples of anything, blocks of every kind only partly filled."""
    from mingcore.ops.moe.cases import _moe

    return _moe(draw, T, K=1 if only else 2, E=5, H=70, I=44, shared=50, only=only)


def check(op: str, kwargs: dict, again: bool = False, **said) -> None:
    if hasattr(kwargs.get("experts"), "as_rows"):  # packed for the CPU, where the tensors are
        kwargs = {**kwargs, "experts": kwargs["experts"].as_rows()}
    with nan_poisoned():
        got = compare.run(op, kwargs, backend="triton")
        twice = compare.run(op, kwargs, backend="triton") if again else got
    compare.check_op(op, kwargs, got)
    assert all(torch.equal(a, b) for a, b in zip(got, twice)), f"{op} {said}: two runs differ"
    say(op=op, **said)


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
            say(
                **made,
                types=[signature.get("x"), signature.get("w")],
                blocks=[constants.get(f"BLOCK_{letter}") for letter in "MNK"],
                copies16=ptx.count("cp.async.cg.shared.global"),
                loads16=ptx.count("ld.global.v4"),
            )


if __name__ == "__main__":
    if sys.argv[1] == "interpret":
        interpret(3 if "few" in sys.argv[2:] else 1)
    else:
        compile_all("all" in sys.argv[2:])
