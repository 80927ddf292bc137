"""Cases of the causal convolutions: the layers of two real codecs, and the awkward ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import ops
from .._core.cases import LARGE, Cost, Draw, bytes_of, case, cost_of
from .._core.layouts import strided, transposed

# one patch of latents of VoxCPM's AudioVAE (16 kHz, 25 latents a second, 4 a patch) and of
# VibeVoice's acoustic tokenizer (24 kHz, 7.5 latents a second, one a patch), layer by layer


def _snake(d: Draw, C: int) -> tuple[Tensor, Tensor]:
    """alpha, and 1 / alpha: both near one, as trained ones are."""
    alpha = 0.5 + d.uniform(C)
    return alpha, 1 / (alpha + 1e-9)


def _conv(
    d: Draw,
    kind: str,
    B: int,
    C: int,
    N: int,
    L: int,
    k: int,
    groups: int = 1,
    bias: bool = True,
    residual: bool = False,
    before: int = 0,
    mixed: bool = False,
    layout=torch.Tensor.contiguous,
    acts: tuple[str | None, str | None] = (None, None),
    float_input: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """before: earlier inputs of every row, 0 for new streams; acts: before and after."""
    pure = kind.removesuffix("_")
    dtype = torch.float32 if float_input else d.dtype
    shape = (C, N // groups, k) if "transpose" in kind else (N, C // groups, k)
    weight = d.normal(*shape, scale=(shape[1] * k) ** -0.5)
    args: dict[str, Any] = {"x": layout(d.normal(B, C, L, dtype=dtype)), "weight": weight}
    if bias:
        args["bias"] = d.normal(N)
    args |= {"groups": groups, "activation_before": acts[0], "activation": acts[1], **options}
    for name, act, channels in (("snake_before", acts[0], C), ("snake", acts[1], N)):
        if act == "snake":
            args[name] = _snake(d, channels)
    function = getattr(ops, pure)
    if before or mixed or pure != kind:
        earlier = {**args, "x": d.normal(B, C, before, dtype=dtype), "last": False}
        args["state"] = state = function(**earlier, backend="reference")[1]
        if not before:  # what must not be read
            state.context.copy_(d.normal(*state.context.shape, dtype=dtype))
    if mixed:
        args["state"].reset([B - 1])
        args["valid"] = torch.tensor([0, *range(L, L - B + 1, -1)], device=d.device).clamp(min=0)
        args["last"] = torch.arange(B, device=d.device) == 1
    if residual or pure != kind:
        outputs = function(**args, backend="reference")[0].shape
        if residual:
            args["residual"] = layout(d.normal(*outputs, dtype=dtype))
        if pure != kind:
            x = args.pop("x")
            args = {"x": x, "out": d.normal(*outputs, dtype=dtype), **args}
    return args


def _cases(op: str) -> None:
    """Cases of both convolutions and of both forms of each."""

    def add(name: str, *tags: str, **dims: Any) -> None:
        case(op, name, _conv, *tags, kind=op, **dims)

    add(
        "odd_sizes",
        "odd",
        "verify",
        B=2,
        C=6,
        N=10,
        L=13,
        k=3,
        groups=2,
        before=5,
        residual=True,
        acts=("elu", "gelu_tanh"),
    )
    add("one", "edge", B=1, C=1, N=1, L=1, k=1)
    add("no_inputs", "edge", "verify", B=2, C=4, N=6, L=0, k=3, before=3)
    add("shorter_than_the_stride", "edge", "verify", B=2, C=4, N=6, L=2, k=7, stride=5, before=4)
    add("stride_beyond_the_kernel", "edge", "verify", B=2, C=4, N=6, L=11, k=2, stride=5, before=3, last=True)
    add("kernel_1_strided", "edge", B=1, C=5, N=3, L=9, k=1, stride=3, last=True)
    add("dilated", B=1, C=8, N=8, L=20, k=7, dilation=27, before=30, acts=("snake", "snake"))
    add(
        "depthwise",
        "verify",
        B=2,
        C=24,
        N=24,
        L=33,
        k=7,
        groups=24,
        dilation=3,
        before=40,
        residual=True,
        acts=("snake", "snake"),
    )
    add("depth_multiplier", "verify", B=1, C=6, N=12, L=19, k=5, groups=6, stride=2, before=3)
    add("depthwise_long", "verify", B=2, C=3, N=3, L=1100, k=7, groups=3, before=6, residual=True)
    add("dilated_long", B=1, C=3, N=3, L=1100, k=7, groups=3, dilation=9, before=30, acts=("snake", "silu"))
    add("mixed_rows", "verify", B=4, C=5, N=7, L=9, k=5, stride=2, before=6, mixed=True, acts=(None, "silu"))
    add("one_output", B=1, C=40, N=1, L=70, k=7, acts=("elu", "tanh"))
    add("strided", "strided", "verify", B=2, C=6, N=8, L=15, k=3, layout=strided, residual=True)
    add("transposed", "strided", "verify", B=2, C=6, N=8, L=15, k=4, stride=2, layout=transposed)
    add("float_input", "verify", B=1, C=40, N=36, L=70, k=3, acts=("gelu", None), float_input=True)
    add("wide", "verify", B=1, C=72, N=80, L=150, k=3, before=9, residual=True, acts=("snake", None))


for _op in ("causal_conv1d", "causal_conv1d_", "causal_conv_transpose1d", "causal_conv_transpose1d_"):
    _cases(_op)
for _op in ("causal_conv1d", "causal_conv1d_"):
    case(_op, "replicate", _conv, kind=_op, B=2, C=4, N=6, L=12, k=5, dilation=2, pad_mode="replicate")
    case(
        _op,
        "replicate_last",
        _conv,
        "verify",
        kind=_op,
        B=3,
        C=4,
        N=6,
        L=8,
        k=6,
        stride=4,
        before=3,
        pad_mode="replicate",
        last=True,
    )
    case(_op, "left_pad", _conv, kind=_op, B=2, C=4, N=6, L=12, k=10, stride=5, left_pad=6)
    case(
        _op,
        "real_vox_residual",
        _conv,
        "real",
        "mid",
        kind=_op,
        B=1,
        C=192,
        N=192,
        L=1280,
        k=7,
        groups=192,
        dilation=9,
        before=54,
        acts=("snake", "snake"),
    )
    case(_op, "real_vox_mix", _conv, "real", kind=_op, B=1, C=192, N=192, L=1280, k=1, before=1, residual=True)
    case(
        _op,
        "real_vox_down",
        _conv,
        "real",
        kind=_op,
        B=1,
        C=512,
        N=1024,
        L=256,
        k=16,
        stride=8,
        before=16,
        acts=("snake", None),
    )
    case(
        _op,
        "real_vibe_mixer",
        _conv,
        "real",
        kind=_op,
        B=1,
        C=64,
        N=64,
        L=1600,
        k=7,
        groups=64,
        before=6,
        residual=True,
    )
    case(_op, "real_vibe_head", _conv, "real", kind=_op, B=1, C=32, N=1, L=3200, k=7, before=6)
for _op in ("causal_conv_transpose1d", "causal_conv_transpose1d_"):
    case(_op, "flush", _conv, "verify", kind=_op, B=2, C=4, N=6, L=8, k=9, stride=3, before=2, trim_right=1, last=True)
    case(
        _op,
        "real_vox_up",
        _conv,
        "real",
        "mid",
        kind=_op,
        B=1,
        C=384,
        N=192,
        L=256,
        k=10,
        stride=5,
        before=2,
        acts=("snake", None),
    )
    case(_op, "real_vibe_up", _conv, "real", kind=_op, B=1, C=512, N=256, L=40, k=10, stride=5, before=2)

# those that prove a GPU kernel, beside the tagged ones above: tiles of every kind, more than there
# are multiprocessors, with weights, inputs and outputs that 16-byte copies can and cannot move
for _op in ("causal_conv1d", "causal_conv1d_", "causal_conv_transpose1d", "causal_conv_transpose1d_"):
    _up = "transpose" in _op
    for _name, _dims in {
        "proof_many": {"C": 64, "N": 256, "L": 8800, "k": 4 if _up else 1, "stride": 1 + _up},
        "proof_many_taps": {"C": 40, "N": 200, "L": 9001, "k": 5, "acts": ("snake", "silu")},
        "proof_few": {"C": 520, "N": 264, "L": 24, "k": 16, "stride": 8, "acts": ("snake", None)},
        "proof_few_odd": {"C": 301, "N": 77, "L": 45, "k": 3, "acts": ("elu", "tanh")},
        "proof_depthwise": {
            "C": 264,
            "N": 264,
            "L": 4096,
            "k": 7,
            "groups": 264,
            "dilation": 9,
            "acts": ("snake", "snake"),
            "residual": True,
        },
    }.items():
        case(_op, _name, _conv, "verify", LARGE, kind=_op, B=1, before=70, **_dims)


def _pack_conv(d: Draw, shape: tuple[int, int, int], **options: Any) -> dict[str, Any]:
    return {"weight": d.matrix(*shape), **options}


case("pack_conv", "even", _pack_conv, shape=(64, 32, 7))
case("pack_conv", "odd_sizes", _pack_conv, "odd", shape=(45, 11, 3), groups=3)
case("pack_conv", "depthwise", _pack_conv, "edge", shape=(20, 1, 7), groups=20)
case("pack_conv", "mid_up", _pack_conv, "mid", shape=(64, 48, 10), stride=5, transposed=True)
case("pack_conv", "odd_up", _pack_conv, "odd", shape=(12, 17, 5), stride=3, dilation=2, groups=2, transposed=True)


@cost_of("causal_conv1d")
def _conv_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    """Every output is a sum over the taps and channels of its group."""
    taps = kwargs["weight"].shape[1:].numel()
    return Cost(bytes_of(kwargs) + written, 2 * outputs[0].numel() * taps)


@cost_of("causal_conv_transpose1d")
def _transposed_cost(kwargs: dict[str, Any], written: int, outputs: tuple[Tensor, ...]) -> Cost:
    """Every input goes to the taps and output channels of its group."""
    taps = kwargs["weight"].shape[1:].numel()
    return Cost(bytes_of(kwargs) + written, 2 * kwargs["x"].numel() * taps)
