"""Linear layers on the CPU kernels."""

import torch

from ... import _cpu
from .._core.cpu import array, array_or_none, rows
from .._core.support import FLOATS, Support
from ..activation.cpu import silu_mul
from . import LINEAR

_LARGEST_K = 1 << 17  # columns whose products of 8-bit integers an int32 can sum


def _unsupported_reason(x, weight, layout, scale, format, **_):
    K = x.shape[-1]
    if K == 0:
        return "x has K = 0; it takes K >= 1"
    if scale is None:
        return None if weight.dtype in FLOATS else f"weight is {weight.dtype} and has no scale"
    if layout == "rows":
        return f"the weight is {format} in rows; it takes panels (pack_linear for the CPU)"
    if format == "int8_dyn" and K > _LARGEST_K:
        return f"x has K = {K}; with int8_dyn it takes K <= {_LARGEST_K}"
    return None


@LINEAR.implementation(
    "cpu",
    Support(
        floats=("x", "bias", "residual", "scale"),
        types={"weight": (*FLOATS, torch.int8, torch.uint8)},
        rule=_unsupported_reason,
    ),
)
def linear(x, weight, bias, residual, activation, layout, n, scale, format, out):
    if activation == "swiglu" and layout == "panels":
        # packed without knowing the activation: the gates lie in other panels than their ups
        both, gated = x.new_empty(*x.shape[:-1], n, dtype=torch.float32), torch.empty_like(out, dtype=torch.float32)
        _linear(x, weight, bias, None, "none", layout, n, scale, both)
        silu_mul(both, gated)
        out.copy_(gated if residual is None else gated + residual)
    else:
        _linear(x, weight, bias, residual, activation, layout, n, scale, out)


def _linear(x, weight, bias, residual, activation, layout, n, scale, out):
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
        array(out.view(-1, out.shape[-1])),
        activation,
        layout,
        n,
        torch.get_num_threads(),
    )
