"""flow_sample on the `cpu` backend: one native call for all steps and blocks of the sampler."""

import torch
from torch import Tensor

from ... import _cpu
from .._core.cpu import array, array_or_none, unfit
from .._core.registry import register

_FORMATS = ("fp32", "bf16", "fp16", "int8", "int8_dyn")
_FLOAT32 = ("noise", "guidance", "times", "dt", "noise_scale", "cos", "sin")
_NAMES = ("condition", "history", *_FLOAT32)


def _flow_sample_why_not(
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
    if layout != "panels":
        return f"the matrices are in layout {layout!r}; it takes panels (ops.pack_flow_head)"
    if format not in _FORMATS:
        return f"the matrices are {format}; it takes {', '.join(_FORMATS)}"
    if times.shape[1] // heads % 2:
        return f"heads are {times.shape[1] // heads} wide; it takes an even width"
    tensors = condition, history, noise, guidance, times, dt, noise_scale, cos, sin
    for name, t in zip(_NAMES, tensors):
        if name in _FLOAT32 and t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes a float32 {name}"
    floats = [None if t.dtype in (torch.int8, torch.uint8) else t for t in matrices]
    vectors = (*floats, *biases, *norms)
    names = ("a matrix",) * 7 + ("a bias",) * 7 + ("a norm's weight",) * len(norms)
    return unfit((*_NAMES, *names), (*tensors, *vectors))


@register("flow_sample", "cpu", _flow_sample_why_not)
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
    out = torch.empty(noise.shape[1:])
    # copies made here must live, by name, until the kernel has read them
    tensors = condition, history, noise, guidance, times, dt, noise_scale, cos, sin
    tensors = tuple(t.contiguous() for t in tensors)
    biases, norms = [t.contiguous() for t in biases], [t.contiguous() for t in norms]
    *arguments, cos, sin = map(array, tensors)
    _cpu.flow_sample(
        *arguments,
        bytes(advance),
        cos,
        sin,
        # quads [.., ceil(K/4), 32, 4] as [.., ceil(K/4), 128]
        [array(w.flatten(-2) if w.dtype == torch.uint8 else w) for w in matrices],
        list(map(array, biases)),
        list(map(array, norms)),
        list(map(array, scales)),
        heads,
        heads if rope_heads is None else rope_heads,
        guided,
        array(out),
        torch.get_num_threads(),
    )
    return out


_FLOW_NAMES = ("x", "v_cond", "v_null", "guidance", "noise", "noise_scale")


def _flow_step_why_not(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    for name, t in (("x", x), ("guidance", guidance), ("noise_scale", noise_scale)):
        if t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes a float32 {name}"
    return unfit(_FLOW_NAMES, (x, v_cond, v_null, guidance, noise, noise_scale))


def _flow_step_in_place_why_not(x, *rest):
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return f"x has strides {tuple(x.stride())}; in place it takes a dense last dimension"
    if torch._debug_has_internal_overlap(x) == 1:
        return f"x overlaps itself (strides {tuple(x.stride())}); in place it takes none"
    return _flow_step_why_not(x, *rest)


def _dense_last(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def _step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out):
    x, v_cond, v_null = _dense_last(x), _dense_last(v_cond), _dense_last(v_null)
    guidance, noise, noise_scale = (_dense_last(t) for t in (guidance, noise, noise_scale))
    _cpu.flow_step(
        array(x),
        array(v_cond),
        array_or_none(v_null),
        dt,
        array(guidance),
        array_or_none(noise),
        array(noise_scale),
        array(out),
        torch.get_num_threads(),
    )


@register("flow_step", "cpu", _flow_step_why_not)
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    out = torch.empty(x.shape)
    _step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out)
    return out


@register("flow_step_", "cpu", _flow_step_in_place_why_not)
def flow_step_(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    _step(x, v_cond, v_null, dt, guidance, noise, noise_scale, x)
