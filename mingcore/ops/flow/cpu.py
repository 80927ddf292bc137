"""The flow sampler on the CPU kernels: one native call for all its steps and blocks; and its Euler step."""

import torch

from ... import _cpu
from .._core.cpu import array, array_or_none, dense_last
from .._core.packing import CPU_FORMATS
from .._core.support import FLOATS, Support
from . import FLOW_SAMPLE, FLOW_STEP

# Copies that an adapter makes must live, by name, until the kernel has read them.


def _odd_heads(times, heads, **_) -> str | None:
    width = times.shape[1] // heads
    return f"heads are {width} wide; it takes an even width" if width % 2 else None


@FLOW_SAMPLE.implementation(
    "cpu",
    Support(
        floats=("condition", "history", "biases", "norms"),
        float32=("noise", "guidance", "times", "dt", "noise_scale", "cos", "sin"),
        types={"matrices": (*FLOATS, torch.int8, torch.uint8)},
        layouts=("panels",),
        formats=CPU_FORMATS,
        rule=_odd_heads,
    ),
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
    tensors = condition, history, noise, guidance, times, dt, noise_scale, cos, sin
    tensors = [t.contiguous() for t in tensors]
    biases, norms = [t.contiguous() for t in biases], [t.contiguous() for t in norms]
    *arguments, cos, sin = map(array, tensors)
    _cpu.flow_sample(
        *arguments,
        bytes(advance),
        cos,
        sin,
        # VNNI-4 panels [.., ceil(K/4), 32, 4] as [.., ceil(K/4), 128]
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


@FLOW_STEP.implementation(
    "cpu",
    Support(
        floats=("v_cond", "v_null", "noise"),
        float32=("x", "guidance", "noise_scale"),
        dense_last=("out",),
        disjoint=("out",),
    ),
)
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out):
    x, v_cond, guidance, noise_scale = map(dense_last, (x, v_cond, guidance, noise_scale))
    v_null, noise = (None if t is None else dense_last(t) for t in (v_null, noise))
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
