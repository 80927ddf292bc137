"""The `triton` backend: launchers of `mingcore_kernels`, one kernel per op.

Importing this module fails where Triton is not installed; the registry reports the reason. Under
TRITON_INTERPRET=1 the kernels also run on CPU tensors, which is how they are tested without a GPU.
"""

from pathlib import Path

import torch
from torch import Tensor
from triton import knobs

import mingcore_kernels
from mingcore_kernels import flow_step as flow_kernels
from mingcore_kernels import silu_mul as silu_kernels

from .registry import register

_KERNELS = Path(mingcore_kernels.__file__).parent
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_FLOW_NAMES = ("x", "v_cond", "v_null", "guidance", "noise", "noise_scale")


def _unfit(names: tuple[str, ...], tensors: tuple[Tensor | None, ...]) -> str | None:
    first = tensors[0]
    if first.device.type != "cuda" and not knobs.runtime.interpret:
        return f"{names[0]} is on {first.device}; it takes tensors on a GPU"
    for name, t in zip(names, tensors):
        if t is None:
            continue
        if t.device != first.device:
            return f"{name} is on {t.device}, {names[0]} on {first.device}"
        if t.dtype not in _FLOATS:
            return f"{name} is {t.dtype}; it takes float32, bfloat16 and float16"
        if t.requires_grad and torch.is_grad_enabled():
            return f"{name} requires a gradient; it computes none (torch.no_grad() or reference)"
        if t.shape[-1] > 1 and t.stride(-1) != 1:
            return f"{name} has strides {tuple(t.stride())}; it takes a dense last dimension"
    return None


def _flow_step_why_not(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    for name, t in (("x", x), ("guidance", guidance), ("noise_scale", noise_scale)):
        if t.dtype != torch.float32:
            return f"{name} is {t.dtype}; it takes a float32 {name}"
    return _unfit(_FLOW_NAMES, (x, v_cond, v_null, guidance, noise, noise_scale))


def _flow_step_in_place_why_not(x, *rest):
    if torch._debug_has_internal_overlap(x) == 1:
        return f"x overlaps itself (strides {tuple(x.stride())}); in place it takes none"
    return _flow_step_why_not(x, *rest)


@register("flow_step", "triton", _flow_step_why_not, sources=(_KERNELS / "flow_step.py",))
def flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    flow_kernels.flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, out)
    return out


@register("flow_step_", "triton", _flow_step_in_place_why_not, sources=(_KERNELS / "flow_step.py",))
def flow_step_(x, v_cond, v_null, dt, guidance, noise, noise_scale):
    flow_kernels.flow_step(x, v_cond, v_null, dt, guidance, noise, noise_scale, x)


def _silu_mul_why_not(gate_up):
    return _unfit(("gate_up",), (gate_up,))


@register("silu_mul", "triton", _silu_mul_why_not, sources=(_KERNELS / "silu_mul.py",))
def silu_mul(gate_up):
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], width))
    if out.numel():
        silu_kernels.silu_mul(gate_up.reshape(-1, gate_up.shape[-1]), out.view(-1, width))
    return out
