"""The flow sampler and its Euler step on the Triton kernels."""

from pathlib import Path

import torch

from mingcore_kernels.flow import flow_sample as flow_kernels
from mingcore_kernels.flow import flow_step as step_kernels
from mingcore_kernels.lib.target import capability_of

from .._core.packing import QUANTISED
from .._core.support import FLOATS, FP8_CAPABILITY, Limit, Support
from .._core.triton import KERNELS
from . import FLOW_SAMPLE, FLOW_STEP
from .packing import BLOCKS, MATRICES

MAX_HEAD = 256
_BLOCKS = tuple(MATRICES[i] for i in BLOCKS)
_STEPS = ("noise", "guidance", "times", "dt", "noise_scale", "cos", "sin")
_STORED = {name: QUANTISED[name] for name in ("int8", "fp8")}  # activations stay as they are


def _mismatch(condition, matrices, scales, format, **_) -> str | None:
    if format in QUANTISED and format not in _STORED:
        return f"format {format} quantises activations, which stay as they are on a GPU; it takes int8"
    x = condition.dtype
    for name, w in zip(MATRICES, matrices):
        if format in _STORED and name in _BLOCKS:
            if w.dtype != _STORED[format]:
                return f"{name} is {w.dtype}; format {format} takes {_STORED[format]}"
        elif w.dtype not in FLOATS or (x != w.dtype and x != torch.float32):
            return f"condition is {x} and {name} is {w.dtype}; it takes one type, or float32"
    for name, scale in zip(MATRICES, scales):
        if bool(scale.numel()) != (name in _BLOCKS):
            return f"{name} has {scale.numel()} scales; it takes some for {', '.join(_BLOCKS)}"
    if format in _STORED and not scales:
        return f"format {format} comes without scales"
    if format == "fp8" and not condition.is_cpu:
        capability = capability_of(condition.device.index)
        if capability < FP8_CAPABILITY:
            return f"sm_{capability} has no 8-bit floats; it takes sm_{FP8_CAPABILITY} and newer"
    return None


@FLOW_SAMPLE.implementation(
    "triton",
    Support(
        floats=("condition", "history", "biases", "norms"),
        float32=_STEPS,
        types={"matrices": (*FLOATS, *_STORED.values())},
        dense_last=("condition", "history", "biases", "norms", *_STEPS),
        contiguous=("matrices",),
        layouts=("rows",),
        limits=(Limit("heads are {} wide", lambda matrices, heads, **_: matrices[0].shape[0] // heads, MAX_HEAD),),
        rule=_mismatch,
    ),
    sources=(KERNELS / "flow" / "flow_sample.py", Path(__file__).with_name("packing.py")),
)
def flow_sample(
    condition,
    history,
    noise,
    guidance,
    times,
    dt,
    noise_scale,
    advance,
    cos,
    sin,
    matrices,
    biases,
    norms,
    scales,
    heads,
    rope_heads,
    guided,
    layout,
    format,
    out,
):
    flow_kernels.flow_sample(
        condition.contiguous(),
        history.contiguous(),
        noise.contiguous(),
        guidance.contiguous(),
        times.contiguous(),
        dt.contiguous(),
        noise_scale.contiguous(),
        advance,
        cos.contiguous(),
        sin.contiguous(),
        matrices,
        *([t.contiguous() for t in group] for group in (biases, norms, scales)),
        heads,
        heads if rope_heads is None else rope_heads,
        guided,
        out,
    )


_STEP_TENSORS = ("x", "v_cond", "v_null", "guidance", "noise", "noise_scale")


@FLOW_STEP.implementation(
    "triton",
    Support(
        floats=("v_cond", "v_null", "noise"),
        float32=("x", "guidance", "noise_scale"),
        dense_last=_STEP_TENSORS,
        disjoint=("out",),
    ),
    sources=(KERNELS / "flow" / "flow_step.py",),
)
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out):
    step_kernels.flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out)
