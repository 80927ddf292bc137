"""The `cpu` backend: mingcore._cpu, which runs on the vector units of this machine.

Importing this module fails where `_cpu` was not built; the registry reports that as the reason.
Tensors cross as (data_ptr, dtype code, sizes, strides); threads follow `torch.get_num_threads()`.
"""

import torch

from ... import _cpu
from .._core.cpu import array, array_or_none, rows, unfit
from .._core.registry import register
from ..activation.cpu import silu_mul


def _linear_why_not(x, weight, bias, residual, activation, layout, n, scale=None, format="", largest_k=1 << 17):
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
