"""Linear layers and the grouped product on the Triton kernels."""

import torch
from torch import Tensor

from mingcore_kernels.gemm import grouped_gemm as gemm_kernels
from mingcore_kernels.gemm import linear as linear_kernels
from mingcore_kernels.lib.launch import on_device
from mingcore_kernels.lib.quantise import quantised_rows
from mingcore_kernels.lib.target import capability_of

from .._core.packing import QUANTISED
from .._core.support import FLOATS, FP8_CAPABILITY, Support
from .._core.triton import KERNELS, matrix
from ..routing.triton import experts_limit
from . import GROUPED_GEMM, LINEAR

WEIGHTS = (*FLOATS, *dict.fromkeys(QUANTISED.values()))  # types of weights as rows


def weights_unsupported_reason(x: Tensor, weight: Tensor, scale: Tensor | None, format: str) -> str | None:
    """Why weights in `format` cannot be multiplied with x, or None. Float weights have the type of
    x, or x is float32 and they are widened."""
    if format not in QUANTISED and scale is None:
        if weight.dtype in FLOATS and x.dtype in (weight.dtype, torch.float32):
            return None
        return f"x is {x.dtype} and the weights are {weight.dtype}; it takes one type, or float32 x"
    if weight.dtype != QUANTISED.get(format) or scale is None:
        return f"format {format} comes as {weight.dtype} {'without' if scale is None else 'with'} scales"
    if format == "fp8" and not x.is_cpu:
        capability = capability_of(x.device.index)
        if capability < FP8_CAPABILITY:
            return f"sm_{capability} has no 8-bit floats; it takes sm_{FP8_CAPABILITY} and newer"
    return None


@LINEAR.implementation(
    "triton",
    Support(
        floats=("x", "bias", "residual"),
        float32=("scale",),
        types={"weight": WEIGHTS},
        dense_last=("x", "weight", "bias", "residual", "scale"),
        contiguous=("weight",),
        layouts=("rows",),
        rule=lambda x, weight, scale, format, **_: weights_unsupported_reason(x, weight, scale, format),
    ),
    sources=(KERNELS / "gemm" / "linear.py", KERNELS / "lib" / "quantise.py"),
)
def linear(x, weight, bias, residual, activation, layout, n, scale, format, out):
    if not out.numel():
        return
    K = x.shape[-1]
    x, x_scale = matrix(x) if K else x.new_empty(out.numel() // out.shape[-1], 0), None
    if format == "int8_dyn":
        with on_device(x):
            x, x_scale = quantised_rows(x)
    linear_kernels.linear(
        x,
        weight,
        None if bias is None else bias.contiguous(),
        None if residual is None else matrix(residual),
        activation,
        out,
        scale=None if scale is None else scale.contiguous(),
        x_scale=x_scale,
    )


@GROUPED_GEMM.implementation(
    "triton",
    Support(
        floats=("x",),
        types={"w": WEIGHTS, "offsets": (torch.int32,)},
        dense_last=("x", "w", "offsets"),
        limits=(experts_limit(lambda w, **_: w.shape[0]),),
        rule=lambda x, w, offsets: weights_unsupported_reason(x, w, None, ""),
    ),
    sources=(KERNELS / "gemm" / "grouped_gemm.py",),
)
def grouped_gemm(x, w, offsets, out):
    gemm_kernels.grouped_gemm(x, w, offsets, out)
