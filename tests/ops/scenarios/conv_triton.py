"""Triton's convolutions and frame_embed without a GPU: streams, what is refused, and binaries.

`compile_all`: the very launches that the layers of two real codecs lead to, compiled for one GPU;
"few": two layers; "all": every layer, type and batch for three.
"""

import torch

from mingcore import ops
from mingcore.errors import BackendError
from mingcore.ops._core.layouts import nan_poisoned
from mingcore.testing import compare, streaming
from mingcore_kernels.conv import causal_conv
from mingcore_kernels.lib.target import assumed
from mingcore_kernels.spectrum import frame_embed
from tests.ops.runners import interpreted
from tests.ops.runners.triton_launches import compiled, meta, recorded, report
from tests.ops.test_streams import conv_call

CAPABILITIES = (80, 90, 100)
BLOCKS = ("BLOCK_M", "BLOCK_C", "BLOCK_T", "BLOCK_K", "SHARE", "BLOCK_W")
SNAKE = {"before": "snake"}
# inputs, outputs, taps, inputs of a patch and of ten seconds, the rest; VoxCPM's AudioVAE, then
# VibeVoice's acoustic tokenizer
LAYERS = {
    "vox_in": (64, 64, 7, 4, 250, {"groups": 64}),
    "vox_mix": (192, 192, 1, 1280, 80000, {"residual": True}),
    "vox_up_8": (1536, 768, 16, 4, 250, {**SNAKE, "transposed": True, "stride": 8}),
    "vox_up_5": (384, 192, 10, 256, 16000, {**SNAKE, "transposed": True, "stride": 5}),
    "vox_up_2": (192, 96, 4, 1280, 80000, {**SNAKE, "transposed": True, "stride": 2}),
    "vox_unit_1": (768, 768, 7, 32, 2000, {"groups": 768, **SNAKE, "after": "snake"}),
    "vox_unit_3": (192, 192, 7, 1280, 80000, {"groups": 192, "dilation": 3, **SNAKE, "after": "snake"}),
    "vox_unit_9": (96, 96, 7, 2560, 160000, {"groups": 96, "dilation": 9, **SNAKE, "after": "snake"}),
    "vox_out": (96, 1, 7, 2560, 160000, {**SNAKE, "after": "tanh"}),
    "vox_down": (512, 1024, 16, 256, 16000, {**SNAKE, "stride": 8}),
    "vox_wave": (1, 128, 7, 2560, 160000, {}),
    "vibe_in": (64, 2048, 7, 1, 75, {}),
    "vibe_up": (512, 256, 10, 40, 3000, {"transposed": True, "stride": 5}),
    "vibe_mixer": (256, 256, 7, 200, 15000, {"groups": 256, "residual": True}),
    "vibe_down": (64, 128, 4, 1600, 120000, {"stride": 2}),
    "vibe_out": (32, 1, 7, 3200, 240000, {}),
}


def streams(op: str, seeds: list[int]) -> None:
    """Any convolution, cut anywhere, rows at their own pace."""
    causal_conv.FAR = interpreted.FAR
    for seed in seeds:
        call = conv_call(op, seed, length=11)
        whole = {**call, "state": None, "last": seed % 2 == 1}
        with nan_poisoned():
            compare.check_op(op, whole, compare.run(op, whole, backend="triton"))
        expected = streaming.once(op, call, "triton")
        sizes = streaming.split(8, seed)[:3]
        sizes.append(11 - sum(sizes))
        for run in (streaming.chunked, streaming.in_place):
            streaming.assert_same(run(op, call, sizes, "triton"), expected, f"{op} {sizes}")
        call = conv_call(op, seed, batch=3, length=7)
        for mine, alone in zip(*streaming.by_rows(op, call, seed, "triton"), strict=True):
            streaming.assert_same(mine, alone, f"{op} rows {seed}")
        report(stream=op, seed=seed)


def refused() -> None:
    x, weight = torch.randn(2, 3, 5), torch.randn(4, 3, 2)
    state = ops.ConvState.start(2, 3, 1)
    for call in (
        lambda: ops.causal_conv1d(x, weight.requires_grad_(), backend="triton"),
        lambda: ops.causal_conv1d(x.double(), weight.detach(), backend="triton"),
        lambda: ops.causal_conv1d_(
            x, torch.empty(1, 4, 5).expand(2, 4, 5), weight.detach(), state=state, backend="triton"
        ),
    ):
        try:
            call()
        except BackendError as error:
            report(refused=str(error))


def layer(
    C: int,
    N: int,
    k: int,
    L: int,
    dtype: torch.dtype,
    *,
    B: int = 1,
    streamed: bool = False,
    transposed: bool = False,
    residual: bool = False,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    before: str = "none",
    after: str = "none",
) -> None:
    """The launches of one layer: in one shot, or a chunk into a preallocated output."""
    span, i64 = (k - 1) * dilation, torch.int64
    width = span // stride if transposed else span
    T = L * stride if transposed else -(-L // stride)
    weight = meta(*((C, N // groups, k) if transposed else (N, C // groups, k)), dtype=dtype)
    context, lengths = meta(B, C, width, dtype=dtype), meta(B, dtype=i64)
    out = meta(B, N, T, dtype=dtype)
    snakes = [
        meta(n, dtype=torch.float32) if name == "snake" else None
        for name, n in ((before, C), (before, C), (after, N), (after, N))
    ]
    causal_conv.causal_conv(
        x=meta(B, C, L, dtype=dtype),
        weight=weight,
        bias=meta(N, dtype=dtype),
        residual=out if residual else None,
        context=context if streamed else None,
        lengths=lengths if streamed else None,
        valid=None,
        ended=None,
        last=not streamed,
        kernel=k,
        stride=stride,
        dilation=dilation,
        groups=groups,
        left_pad=0 if transposed else max(span + 1 - stride, 0),
        replicate=False,
        flush=0,
        transposed=transposed,
        before=before,
        before_alpha=snakes[0],
        before_gain=snakes[1],
        after=after,
        after_alpha=snakes[2],
        after_gain=snakes[3],
        out=out,
        next_context=context,
        next_lengths=lengths,
        emitted=meta(B, dtype=i64),
    )


def embedding(B: int, L: int, dtype: torch.dtype) -> None:
    """frame_embed of the released model."""
    samples, weight = meta(B, L, dtype=dtype), meta(896, 320, dtype=dtype)
    frame_embed.frame_embed(samples, weight, 320, meta(B, -(-L // 320), 896, dtype=dtype))


def launches(mode: str) -> None:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    names = {"few": ("vox_up_5", "vox_unit_3"), "": tuple(LAYERS)[::3]}.get(mode, tuple(LAYERS))
    if mode != "few":
        embedding(1, 1600, bf16)
        embedding(1, 160000, bf16)
        embedding(8, 160000, fp32)
    for i, name in enumerate(names):
        C, N, k, patch, whole, rest = LAYERS[name]
        layer(C, N, k, patch, bf16, streamed=True, **rest)
        if mode == "few":
            continue
        layer(C, N, k, whole, bf16, **rest)
        if mode == "all":
            layer(C, N, k, patch, bf16, B=32, streamed=True, **rest)
            if i % 3 == 2:
                layer(C, N, k, whole, fp32, **rest)
                layer(C, N, k, patch, fp16, streamed=True, **rest)


def compile_all(mode: str) -> None:
    for capability in CAPABILITIES if mode == "all" else CAPABILITIES[1:2]:
        with assumed(capability, processors=132):
            found = recorded(lambda: launches(mode))
        for kernel, signature, constants, *rest in found:
            launch = kernel, signature, constants, *rest
            ptx, made = compiled(*launch, capability=capability)
            report(
                **made,
                types=[signature["x"], signature.get("w")],
                blocks=[constants.get(name) for name in BLOCKS if name in constants],
                wide=ptx.count("cp.async.cg.shared.global") + ptx.count("ld.global.v"),
                shape=[constants[name] for name in ("KERNEL", "STRIDE", "DILATION") if name in constants],
            )
