"""The `triton` backend's flow sampler."""

from pathlib import Path

import torch

from mingcore_kernels.flow import flow_sample as flow_kernels
from mingcore_kernels.flow import flow_step as step_kernels

from .._core.packing import QUANTISED
from .._core.registry import register
from .._core.triton import FLOATS, KERNELS, unfit
from .packing import MATRICES, NORMS

_STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
_BLOCKS = MATRICES[2:6]
_FP8_CAPABILITY = 89
_MAX_HEAD = 256
_STEPS = ("noise", "guidance", "times", "dt", "noise_scale", "cos", "sin")


def _why_not(
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
):
    if layout != "rows":
        return f"the head is in layout {layout!r}; it takes 'rows'"
    if format in QUANTISED and format not in _STORED:
        return f"format {format} quantises activations, which stay as they are on a GPU; take int8"
    given = ("condition", "history", *(f"bias of {name}" for name in MATRICES), *NORMS)
    reason = unfit(given, (condition, history, *biases, *norms))
    states = noise, guidance, times, dt, noise_scale, cos, sin
    reason = reason or unfit(("condition", *_STEPS), (condition, *states))
    for name, t in zip(_STEPS, states):
        if t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes float32"
    reason = reason or unfit(("condition", *MATRICES), (condition, *matrices), types=None)
    return reason or _mismatch(condition, matrices, scales, format) or _heads(matrices[0], heads)


def _mismatch(condition, matrices, scales, format):
    x = condition.dtype
    for name, w in zip(MATRICES, matrices):
        if format in _STORED and name in _BLOCKS:
            if w.dtype != _STORED[format]:
                return f"{name} is {w.dtype}; format {format} takes {_STORED[format]}"
        elif w.dtype not in FLOATS or (x != w.dtype and x != torch.float32):
            return f"condition is {x} and {name} is {w.dtype}; it takes one type, or float32"
        if not w.is_contiguous():
            return f"{name} has strides {tuple(w.stride())}; it takes contiguous matrices"
    for name, scale in zip(MATRICES, scales):
        if bool(scale.numel()) != (name in _BLOCKS):
            return f"{name} has {scale.numel()} scales; it takes some for {', '.join(_BLOCKS)}"
    if format in _STORED and not scales:
        return f"format {format} comes without scales"
    if format == "fp8" and not condition.is_cpu:
        capability, _ = flow_kernels.device_of(condition.device.index)
        if capability < _FP8_CAPABILITY:
            return f"sm_{capability} has no 8-bit floats; it takes sm_{_FP8_CAPABILITY} and newer"
    return None


def _heads(w, heads):
    D = w.shape[0] // heads
    return None if D <= _MAX_HEAD else f"heads are {D} wide; it takes up to {_MAX_HEAD}"


_SOURCES = (KERNELS / "flow" / "flow_sample.py", __file__, Path(__file__).with_name("packing.py"))


@register("flow_sample", "triton", _why_not, sources=_SOURCES)
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
):
    out = noise.new_empty(noise.shape[1:])
    states = (t.contiguous() for t in (noise, guidance, times, dt, noise_scale))
    weights = ([t.contiguous() for t in group] for group in (biases, norms, scales))
    flow_kernels.flow_sample(
        condition.contiguous(),
        history.contiguous(),
        *states,
        advance,
        cos.contiguous(),
        sin.contiguous(),
        matrices,
        *weights,
        heads,
        heads if rope_heads is None else rope_heads,
        guided,
        out,
    )
    return out


_FLOW_NAMES = ("x", "v_cond", "v_null", "guidance", "noise", "noise_scale")


def _flow_step_why_not(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    for name, t in (("x", x), ("guidance", guidance), ("noise_scale", noise_scale)):
        if t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes a float32 {name}"
    return unfit(_FLOW_NAMES, (x, v_cond, v_null, guidance, noise, noise_scale))


def _flow_step_in_place_why_not(x, *rest):
    if torch._debug_has_internal_overlap(x) == 1:
        return f"x overlaps itself (strides {tuple(x.stride())}); in place it takes none"
    return _flow_step_why_not(x, *rest)


@register("flow_step", "triton", _flow_step_why_not, sources=(KERNELS / "flow" / "flow_step.py",))
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    step_kernels.flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out)
    return out


@register("flow_step_", "triton", _flow_step_in_place_why_not, sources=(KERNELS / "flow" / "flow_step.py",))
def flow_step_(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    step_kernels.flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, x)
