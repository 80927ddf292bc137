"""Triton's flow sampler without a GPU: small versions of named cases, and binaries.

`interpret`: against the oracle, or (`few`) some. `compile_all`: the very launches that the real
shapes lead to, compiled for one GPU and some of them for two others; "few": some for one; "all":
every format and batch size for three.
"""

from functools import partial

import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.testing import compare
from mingcore_kernels.flow import configs as flow_configs
from mingcore_kernels.flow import flow_sample
from mingcore_kernels.lib.target import assumed
from tests.ops import flow_harness
from tests.ops.runners.triton_launches import compiled, meta, recorded, report

CAPABILITIES = (80, 90, 100)
L, H, W, C, HC, HEADS = 2, 1024, 4096, 64, 2048, 16  # the released head, of two blocks
BLOCKS = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLIT", "PARTS", "BLOCK_Q", "BLOCK_S", "BLOCK_D")
NORM_TYPE = flow_sample.norm_type
STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


# small enough to be interpreted; T = 5 tokens, heads of 16
TINY = {"H": 32, "W": 64, "C": 8, "Hc": 16, "heads": 2, "N": 2, "P": 2, "schedule": {"steps": 1}}
INTERPRETED = (  # a named case, and what is changed of it
    ("b1", {"schedule": {"steps": 2}}),
    ("guidance_mixed", {"B": 3, "guidance": (0.0, 2.0, 7.0)}),
    ("midpoint", {"L": 1, "schedule": {"steps": 2, "solver": "midpoint"}}),
    ("odd_qk_norm", {"L": 1, "H": 36, "W": 52, "C": 7, "Hc": 13, "heads": 3}),
    ("guidance_0", {"N": 0, "L": 1}),
    ("temperature_mixed", {"N": 3, "L": 1, "schedule": {"steps": 2}}),
    ("int8_b3", {"guidance": 2.0, "float_input": False}),
    ("fp8_b1", {"float_input": False}),
    ("bf16_b1", {"L": 1}),  # a float32 condition: weights are widened
    ("no_rope", {"B": 1, "L": 1}),
    ("no_last_draw", {"B": 1, "L": 1}),
    ("long_patch", {"N": 45, "P": 22, "L": 1}),
    ("large_input", {"L": 1}),
    ("strided", {"B": 2, "L": 1}),
    ("wide_heads", {"L": 1, "H": 40, "heads": 1}),
)
FEW = ("guidance_mixed", "odd_qk_norm", "int8_b3")
TILES = {
    "16": (
        flow_configs.Config(16, 8, 16, split=2, parts=1, warps=2, stages=2),
        flow_configs.Config(32, 16, 16, split=2, parts=1, warps=2, stages=2),
        flow_configs.Config(16, 16, 16, split=1, parts=2, warps=2, stages=2),
        flow_configs.Config(64, 32, 32, split=1, parts=1, warps=4, stages=2),
        flow_configs.Config(16, 32, 16, split=2, parts=1, warps=2, stages=2),
    ),
    "32": (
        flow_configs.Config(16, 32, 32, split=1, parts=1, warps=4, stages=2),
        flow_configs.Config(32, 16, 16, split=1, parts=2, warps=4, stages=2),
    ),
}


def interpret(few: bool) -> None:
    """Every tile in turns, so that small shapes reach all of them."""
    flow_configs.choose = tile
    chosen.clear()
    named = [(name, change) for name, change in INTERPRETED if not few or name in FEW]
    for i, (name, change) in enumerate(named):
        # fp16 with z in fp16 stands for bf16, whose dots are wrong when interpreted
        apart = i % 4 == 3 or name == "large_input"
        flow_sample.norm_type = NORM_TYPE if apart else lambda operand: operand
        dtype = torch.float32 if i % 4 == 1 and not few else torch.float16
        setting = {"device": "cpu", "dtype": dtype, "rows": True}
        kwargs = flow_harness.make(name, **setting, **{**TINY, **change})
        got = flow_harness.run(kwargs, "triton")
        compare.check_op("flow_sample", kwargs, (got,))
        assert i or torch.equal(got, flow_harness.run(kwargs, "triton")), "two runs differ"
        report(case=name, dtype=str(dtype))
    assert few or set(chosen.values()) == {tile for tiles in TILES.values() for tile in tiles}
    for name, change in REFUSED.items():
        setting = {"device": "cpu", "dtype": torch.float16, "rows": True}
        kwargs = flow_harness.make(name, **setting, **{**TINY, **change})
        try:
            ops.flow_sample(**kwargs, backend="triton")
        except BackendError as error:
            report(refused=str(error))


REFUSED = {"int8_dyn_b1": {"L": 1}, "fp16_b1": {"L": 1, "float_input": False, "format": "fp32"}}


chosen: dict[tuple, flow_configs.Config] = {}


def tile(kind: str, *, rows: int, columns: int, depth: int, **_) -> flow_configs.Config:
    """The tile least used so far, of those that fit; the same one for the same product."""
    tiles, used = TILES["32" if kind == "32" else "16"], list(chosen.values())
    fit = [t for t in tiles if t.parts == 1 or depth % (t.parts * t.split * t.block_k) == 0]
    return chosen.setdefault((kind, rows, columns, depth), min(fit, key=used.count))


def sample(
    B: int,
    format: str = "bf16",
    x: torch.dtype = torch.bfloat16,
    N: int = 5,
    P: int = 5,
    guided: bool = True,
    qk_norm: bool = False,
) -> None:
    """The launches of one patch of B requests."""
    f32, blocks, T, E = torch.float32, STORED.get(format, x), 1 + N + P, 2
    matrices = [
        meta(H, HC, dtype=x),
        meta(H, C, dtype=x),
        meta(L, 3 * H, H, dtype=blocks),
        meta(L, H, H, dtype=blocks),
        meta(L, W, H, dtype=blocks),
        meta(L, H, W, dtype=blocks),
        meta(C, H, dtype=x),
    ]
    biases = [meta(*w.shape[:-1], dtype=x) for w in matrices]
    norms = [meta(L, H, dtype=x), meta(L, H, dtype=x), meta(H, dtype=x)]
    norms += [meta(L, H // HEADS, dtype=x)] * (2 if qk_norm else 0)
    scales = [meta(*bias.shape, dtype=f32) for bias in biases] if format in STORED else []
    flow_sample.flow_sample(
        meta(B, HC, dtype=x),
        meta(B, N, C, dtype=x),
        meta(E, B, P, C, dtype=f32),
        meta(B, dtype=f32),
        meta(E, H, dtype=f32),
        meta(E, dtype=f32),
        meta(E, B, dtype=f32),
        [True] * E,
        meta(T, 32, dtype=f32),
        meta(T, 32, dtype=f32),
        matrices,
        biases,
        norms,
        scales,
        HEADS,
        HEADS,
        guided,
        meta(B, P, C, dtype=f32),
    )


def launches(capability: int, mode: str) -> None:
    formats = ["bf16", "int8"] + (["fp8"] if capability >= 89 else [])
    if mode != "all":
        sample(1, "bf16" if capability == 90 else formats[-1])
        return
    for B in (1, 2, 4, 8, 32):
        for format in formats:
            sample(B, format)
        sample(B, N=32, P=4, qk_norm=True)
    for B in (1, 32):
        for format in formats:
            sample(B, format, torch.float16)
        sample(B, x=torch.float32, guided=False)


def compile_all(mode: str) -> None:
    for capability in CAPABILITIES:
        with assumed(capability, processors=132):
            found = recorded(partial(launches, capability, mode))
        if mode == "few":
            found = found[::2] if capability == 90 else []
        elif mode != "all" and capability != 90:
            found = found[1::3]
        for kernel, signature, constants, *rest in found:
            launch = kernel, signature, constants, *rest
            ptx, made = compiled(*launch, capability=capability)
            x, w = signature.get("x", signature.get("z")), signature.get("w")
            report(
                **made,
                types=[x or signature.get("qkv"), w],
                blocks=[constants[name] for name in BLOCKS if name in constants],
                copies16=ptx.count("cp.async.cg.shared.global"),
                waits=ptx.count("griddepcontrol.wait"),
                early=_global_before_wait(ptx),
            )


def _global_before_wait(ptx: str) -> int:
    """Reads and writes of global memory in front of the wait for the launch before."""
    before, wait, _ = ptx.partition("griddepcontrol.wait")
    return sum(before.count(name) for name in ("ld.global", "st.global", "cp.async")) * bool(wait)
