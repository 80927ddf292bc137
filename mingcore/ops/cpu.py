"""The `cpu` backend: mingcore._cpu, which runs on the vector units of this machine.

Importing this module fails where `_cpu` was not built; the registry reports that as the reason.
Tensors cross as (data_ptr, dtype code, sizes, strides); threads follow `torch.get_num_threads()`.
"""

import torch
from torch import Tensor

from .. import _cpu
from . import cpu_attention, cpu_audio, cpu_flow, cpu_moe, cpu_norms  # noqa: F401  they register their ops
from .cpu_common import array, array_or_none, on_huge_pages, rows, unfit
from .cpu_conv import pack_conv_panels  # noqa: F401  for pack_conv
from .packed import FORMATS, OFFSET, PANEL, panels_shape
from .registry import register


def new_panels(count: int, N: int, K: int, format: str, swiglu: bool = False) -> Tensor:
    """Memory for the panels of `count` matrices [N, K]: [count, *panels_shape]."""
    dtype = torch.uint8 if format == "int8_dyn" else FORMATS.get(format, torch.int8)
    return on_huge_pages(torch.empty(count, *panels_shape(N, K, format, swiglu), dtype=dtype))


def pack_panels(weight: Tensor, format: str, *, swiglu: bool = False) -> Tensor:
    """A [N, K] weight as the panels that `linear` reads, in `format`, one of `CPU_FORMATS`.

    For "int8" and "int8_dyn" the weight is what `quantise` stored. Gives [ceil(N/32), K, 32], zero
    padded; with `swiglu` (N = 2I, gate rows first) [ceil(I/16), K, 32], where a panel holds 16 gate
    columns and then their 16 up columns. bf16 panels interleave columns j and j + 16 in one 32-bit
    word; panels of "int8_dyn" are [.., ceil(K/4), 32, 4] uint8. See `packed.py`.
    """
    N, K = weight.shape
    halves = weight.view(2, N // 2, K) if swiglu else weight.unsqueeze(0)
    block = PANEL // halves.shape[0]
    short = -halves.shape[1] % block
    if short:
        halves = torch.nn.functional.pad(halves, (0, 0, 0, short))
    panels = halves.unflatten(1, (-1, block)).permute(1, 3, 0, 2)  # [P, K, halves, block]
    out = new_panels(1, N, K, "int8" if format == "int8_dyn" else format, swiglu)[0]
    if out.dtype == torch.bfloat16:
        view = out.view(-1, K, PANEL // 2, 2)
        view.copy_(panels.reshape(-1, K, 2, PANEL // 2).transpose(2, 3))
    else:
        out.view(panels.shape).copy_(panels)
    if format == "int8_dyn":
        out = torch.nn.functional.pad(
            out.view(torch.uint8) ^ OFFSET, (0, 0, 0, -K % 4), value=OFFSET
        )
        fours = out.unflatten(1, (-1, 4)).transpose(2, 3)
        out = new_panels(1, N, K, format, swiglu)[0].copy_(fours)
    return out


def _linear_why_not(
    x, weight, bias, residual, activation, layout, n, scale=None, format="", largest_k=1 << 17
):
    if x.shape[-1] == 0:
        return "x has K = 0; it takes K >= 1"
    if scale is not None and layout == "rows":
        return f"the weight is {format} in rows; it takes panels (pack_linear for the CPU)"
    if format == "int8_dyn" and x.shape[-1] > largest_k:
        return f"x has K = {x.shape[-1]}; with int8_dyn it takes K <= {largest_k}"
    if scale is not None:
        weight = None  # packed by pack_linear; what else it may be, _cpu checks
    names = ("x", "weight", "bias", "residual", "scale")
    return unfit(names, (x, weight, bias, residual, scale))


@register("linear", "cpu", _linear_why_not)
def linear(x, weight, bias, residual, activation, layout, n, scale=None, format=""):
    if activation == "swiglu" and layout == "panels":
        # packed without knowing the activation: the gates lie in other panels than their ups
        both = _linear(x, weight, bias, None, "none", layout, n, torch.float32, scale)
        gated = silu_mul(both)
        return (gated if residual is None else gated + residual).to(x.dtype)
    return _linear(x, weight, bias, residual, activation, layout, n, x.dtype, scale)


def _linear(x, weight, bias, residual, activation, layout, n, dtype, scale=None):
    outputs = n // 2 if activation == "swiglu" else n
    out = torch.empty((*x.shape[:-1], outputs), dtype=dtype)
    # copies made here must live, by name, until the kernel has read them
    x = rows(x)
    weight = rows(weight) if layout == "rows" else weight
    bias = None if bias is None else bias.contiguous()
    residual = None if residual is None else rows(residual)
    _cpu.linear(
        array(x),
        array(weight),
        array_or_none(bias),
        array_or_none(residual),
        array_or_none(scale),
        array(out.view(-1, outputs)),
        activation,
        layout,
        n,
        torch.get_num_threads(),
    )
    return out


def _silu_mul_why_not(gate_up):
    return unfit(("gate_up",), (gate_up,))


@register("silu_mul", "cpu", _silu_mul_why_not)
def silu_mul(gate_up):
    outputs = gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], outputs), dtype=gate_up.dtype)
    if out.numel():
        gate_up = rows(gate_up)
        _cpu.silu_mul(array(gate_up), array(out.view(-1, outputs)), torch.get_num_threads())
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
