"""Causal convolutions on the CPU kernel, which serves both kinds."""

import torch
from torch import Tensor

from ... import _cpu
from .._core.cpu import array, array_or_none, dense_last, pack_panels
from .._core.packing import format_of
from .._core.support import Support
from . import CAUSAL_CONV1D, CAUSAL_CONV_TRANSPOSE1D
from .packing import FEW, group_matrices, pack_conv_panels

# Copies that an adapter makes must live, by name, until the kernel has read them.
_SUPPORT = Support(
    floats=("x", "weight", "bias", "residual"),
    float32=("before_alpha", "before_gain", "after_alpha", "after_gain"),
    dense_last=("out",),
    contiguous=("next_context", "next_lengths", "emitted"),
    disjoint=("out",),
)


@CAUSAL_CONV1D.implementation("cpu", _SUPPORT)
def causal_conv1d(weight, kernel, stride, dilation, groups, left_pad, replicate, layout, **rest):
    matrices = weight if layout != "rows" else group_matrices(weight, 1, 1, groups, False)
    sizes = (groups, kernel, stride, dilation, 1, left_pad, 0, replicate)
    _run(matrices=matrices, sizes=sizes, layout=layout, **rest)


@CAUSAL_CONV_TRANSPOSE1D.implementation("cpu", _SUPPORT)
def causal_conv_transpose1d(weight, kernel, stride, dilation, groups, flush, layout, **rest):
    matrices = weight if layout != "rows" else group_matrices(weight, stride, dilation, groups, True)
    width = (kernel - 1) * dilation // stride
    sizes = (groups, width + 1, 1, 1, stride, width, flush, False)
    _run(matrices=matrices, sizes=sizes, layout=layout, **rest)


def _run(
    x,
    matrices,
    bias,
    residual,
    context,
    lengths,
    valid,
    ended,
    last,
    sizes,
    layout,
    before,
    before_alpha,
    before_gain,
    after,
    after_alpha,
    after_gain,
    out,
    next_context,
    next_lengths,
    emitted,
    **_,
):
    x, bias = dense_last(x), dense(bias)
    residual = None if residual is None else dense_last(residual)
    context, lengths, valid, ended = dense(context), dense(lengths), dense(valid), dense(ended)
    before_alpha, before_gain = dense(before_alpha), dense(before_gain)
    after_alpha, after_gain = dense(after_alpha), dense(after_gain)
    if layout == "rows" and matrices.shape[1] > FEW:
        matrices, layout = _panels_now(matrices), "conv_panels"
    elif layout == "rows":
        matrices = matrices.contiguous()
    _cpu.causal_conv(
        array(x),
        array(matrices),
        array_or_none(bias),
        array_or_none(residual),
        array_or_none(context),
        array(next_context),
        counters(lengths, valid, ended, last, next_lengths, emitted),
        array(out),
        sizes,
        before,
        array_or_none(before_alpha),
        array_or_none(before_gain),
        after,
        array_or_none(after_alpha),
        array_or_none(after_gain),
        layout != "rows",
        torch.get_num_threads(),
    )


def counters(lengths, valid, ended, last, next_lengths, emitted) -> tuple:
    """A stream's counters as addresses; they must be dense and live until the kernel is done."""
    return (
        0 if lengths is None else lengths.data_ptr(),
        0 if valid is None else valid.data_ptr(),
        0 if ended is None else ended.data_ptr(),
        int(last),
        next_lengths.data_ptr(),
        emitted.data_ptr(),
    )


def dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _panels_now(matrices: Tensor) -> Tensor:
    """Raw weights packed in passing: one more pass over them in every call."""
    weight = matrices.flatten(0, 1).unsqueeze(2)
    return pack_conv_panels(pack_panels, weight, format_of(matrices.dtype), 1, 1, len(matrices), False)
