"""The `cuda` backend: hand-written kernels of `csrc/cuda`, one launch per op on the current stream.

Importing this module fails where cuda-python is not installed; the registry reports the reason.
"""

import struct

import torch
from torch import Tensor

from . import (
    cuda_audio,  # noqa: F401  registers overlap_add and the spectrum head
    cuda_conv,  # noqa: F401  registers the convolutions
    cuda_flow,  # noqa: F401  registers the flow sampler
    cuda_moe,  # noqa: F401  registers the expert kernels
    launch,
)
from .cuda_common import TYPES, unfit
from .registry import register

_THREADS = 256
_FLOW_NAMES = ("x", "v_cond", "v_null", "guidance", "noise", "noise_scale")
_FLOW_PARAMS = struct.Struct("<7Q11q2ifi")  # FlowStepParams of flow_step.cu


def flow_step_unfit(x, v_cond, v_null, guidance, noise, noise_scale) -> str | None:
    """What both GPU backends ask of the operands of flow_step."""
    for name, t in (("x", x), ("guidance", guidance), ("noise_scale", noise_scale)):
        if t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes a float32 {name}"
    tensors = (x, v_cond, v_null, guidance, noise, noise_scale)
    for name, t in zip(_FLOW_NAMES, tensors):
        if t is not None and t.shape[-1] > 1 and t.stride(-1) != 1:
            return f"{name} has strides {t.stride()}; it takes a dense last dimension"
    for name, t in (("v_cond", v_cond), ("v_null", v_null), ("noise", noise)):
        if t is not None and t.dtype not in TYPES:
            return f"{name} is {t.dtype}; it takes float32, bfloat16 and float16"
    return unfit(_FLOW_NAMES, tensors)


def _flow_step_why_not(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    reason = launch.why_not("flow_step", x.device)
    if reason is None and v_null is not None and v_null.dtype != v_cond.dtype:
        reason = f"v_null is {v_null.dtype}, v_cond {v_cond.dtype}; it takes one type for both"
    if reason is None and noise is not None and noise.dtype != torch.float32:
        reason = f"noise is {noise.dtype}; it takes float32 noise"
    return reason or flow_step_unfit(x, v_cond, v_null, guidance, noise, noise_scale)


def _flow_step_in_place_why_not(x, *rest):
    if torch._debug_has_internal_overlap(x) == 1:
        return f"x overlaps itself (strides {tuple(x.stride())}); in place it takes none"
    return _flow_step_why_not(x, *rest)


def _vectors(*tensors: Tensor | None) -> bool:
    """Whether 4 elements can move at once: C, strides and addresses are multiples of 4 elements."""
    return all(
        t.shape[-1] % 4 == 0
        and t.stride(0) % 4 == 0
        and t.stride(1) % 4 == 0
        and t.data_ptr() % (4 * t.element_size()) == 0
        for t in tensors
        if t is not None
    )


def _flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out):
    B, P, C = x.shape
    if x.numel() == 0:
        return
    tensors = (x, v_cond, v_null, noise, out)
    width = 4 if _vectors(*tensors) else 1
    strides = [s for t in tensors for s in ((0, 0) if t is None else t.stride()[:2])]
    operands = (x, v_cond, v_null, noise, guidance, noise_scale, out)
    pointers = [0 if t is None else t.data_ptr() for t in operands]
    name = f"flow_step_{TYPES[v_cond.dtype]}_{width}"
    kernel = launch.kernel("flow_step", name, x.device.index)
    blocks = (B * P * (C // width) + _THREADS - 1) // _THREADS
    params = _FLOW_PARAMS.pack(*pointers, *strides, B, P, C, dt, 0)
    launch.launch(kernel, (blocks, 1, 1), (_THREADS, 1, 1), params)


@register(
    "flow_step",
    "cuda",
    _flow_step_why_not,
    sources=(launch.source("flow_step"), __file__),
    flags=launch.FLAGS,
)
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out)
    return out


@register(
    "flow_step_",
    "cuda",
    _flow_step_in_place_why_not,
    sources=(launch.source("flow_step"), __file__),
    flags=launch.FLAGS,
)
def flow_step_(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    _flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, x)
