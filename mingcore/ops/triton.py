"""The `triton` backend: launchers of `mingcore_kernels`, one kernel per op.

Importing this module fails where Triton is not installed; the registry reports the reason. Under
TRITON_INTERPRET=1 the kernels also run on CPU tensors, which is how they are tested without a GPU.
"""

import torch

from mingcore_kernels import flow_step as flow_kernels
from mingcore_kernels import silu_mul as silu_kernels

from . import (  # noqa: F401  they register their ops
    triton_attention,
    triton_audio,
    triton_conv,
    triton_dense,
    triton_flow,
    triton_moe,
)
from .registry import register
from .triton_common import KERNELS, unfit

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


@register("flow_step", "triton", _flow_step_why_not, sources=(KERNELS / "flow_step.py",))
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    flow_kernels.flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out)
    return out


@register("flow_step_", "triton", _flow_step_in_place_why_not, sources=(KERNELS / "flow_step.py",))
def flow_step_(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    flow_kernels.flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, x)


def _silu_mul_why_not(gate_up):
    return unfit(("gate_up",), (gate_up,))


@register("silu_mul", "triton", _silu_mul_why_not, sources=(KERNELS / "silu_mul.py",))
def silu_mul(gate_up):
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    if out.numel():
        silu_kernels.silu_mul(gate_up.reshape(-1, gate_up.shape[-1]), out.view(-1, width))
    return out
