"""The `cpu` backend's convolutions: one native kernel for both; packing their weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _cpu
from .._core.cpu import array, array_or_none, pack_panels, unfit
from .._core.packing import FORMATS, PANEL
from .._core.registry import register
from .packing import phases

FEW = 4  # outputs of a group that are not worth a panel of 32


def pack_conv_panels(
    weight: Tensor, format: str, stride: int, dilation: int, groups: int, transposed: bool
) -> Tensor | None:
    """A convolution's weight as "conv_panels" (packed_conv.py); None where rows serve better."""
    rows = _matrix(weight, stride, dilation, groups, transposed)
    if rows.shape[1] <= FEW:
        return None
    if rows.shape[1] % PANEL:  # a group's panels must not share one with the next
        rows = F.pad(rows, (0, 0, 0, -rows.shape[1] % PANEL))
    panels = pack_panels(rows.reshape(-1, rows.shape[2]), format)
    return panels.view(groups, -1, *panels.shape[1:])


def _matrix(weight, stride, dilation, groups, transposed) -> Tensor:
    """[groups, N, K]: the rows of each group's product."""
    if transposed:
        return phases(weight, stride, dilation, groups).flatten(2)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _why_not(x, weight, bias, residual, *rest):
    for t in (*rest[-7:-5], *rest[-4:-2]):
        if t is not None and t.dtype != torch.float32:
            return f"alpha or gain is {t.dtype}; it takes float32"
    names = ("x", "weight", "bias", "residual")
    return unfit(names, (x, weight, bias, residual))


def _in_place_why_not(x, out, context, lengths, emitted, *rest):
    if not (context.is_contiguous() and lengths.is_contiguous() and emitted.is_contiguous()):
        return "the state is not contiguous"
    if out.stride(-1) != 1 and out.shape[-1] > 1:
        return f"out has strides {tuple(out.stride())}; it takes a dense last dimension"
    if torch._debug_has_internal_overlap(out) == 1:
        return f"out overlaps itself (strides {tuple(out.stride())})"
    return _why_not(x, *rest)


@register("causal_conv1d", "cpu", _why_not)
def causal_conv1d(
    x,
    weight,
    bias,
    residual,
    context,
    lengths,
    valid,
    ended,
    last,
    outputs,
    kernel,
    stride,
    dilation,
    groups,
    left_pad,
    replicate,
    *rest,
):
    *acts, layout, n = rest
    results = _fresh(x, n, outputs, (kernel - 1) * dilation)
    sizes = (groups, kernel, stride, dilation, 1, left_pad, 0, replicate)
    matrix = weight if layout != "rows" else _matrix(weight, 1, 1, groups, False)
    _run(x, matrix, bias, residual, (context, lengths), (valid, ended, last), results, sizes, acts, layout)
    return results


@register("causal_conv1d_", "cpu", _in_place_why_not)
def causal_conv1d_(
    x,
    out,
    context,
    lengths,
    emitted,
    weight,
    bias,
    residual,
    valid,
    ended,
    last,
    kernel,
    stride,
    dilation,
    groups,
    left_pad,
    replicate,
    *rest,
):
    *acts, layout, _ = rest
    sizes = (groups, kernel, stride, dilation, 1, left_pad, 0, replicate)
    matrix = weight if layout != "rows" else _matrix(weight, 1, 1, groups, False)
    results = out, context, lengths, emitted
    _run(x, matrix, bias, residual, (context, lengths), (valid, ended, last), results, sizes, acts, layout)


@register("causal_conv_transpose1d", "cpu", _why_not)
def causal_conv_transpose1d(
    x,
    weight,
    bias,
    residual,
    context,
    lengths,
    valid,
    ended,
    last,
    outputs,
    kernel,
    stride,
    dilation,
    groups,
    flush,
    *rest,
):
    *acts, layout, n = rest
    width = (kernel - 1) * dilation // stride
    results = _fresh(x, n, outputs, width)
    sizes = (groups, width + 1, 1, 1, stride, width, flush, False)
    matrix = weight if layout != "rows" else _matrix(weight, stride, dilation, groups, True)
    _run(x, matrix, bias, residual, (context, lengths), (valid, ended, last), results, sizes, acts, layout)
    return results


@register("causal_conv_transpose1d_", "cpu", _in_place_why_not)
def causal_conv_transpose1d_(
    x,
    out,
    context,
    lengths,
    emitted,
    weight,
    bias,
    residual,
    valid,
    ended,
    last,
    kernel,
    stride,
    dilation,
    groups,
    flush,
    *rest,
):
    *acts, layout, _ = rest
    width = (kernel - 1) * dilation // stride
    sizes = (groups, width + 1, 1, 1, stride, width, flush, False)
    matrix = weight if layout != "rows" else _matrix(weight, stride, dilation, groups, True)
    results = out, context, lengths, emitted
    _run(x, matrix, bias, residual, (context, lengths), (valid, ended, last), results, sizes, acts, layout)


def _fresh(x, n, outputs, width):
    B, C, _ = x.shape
    y = torch.empty(B, n, outputs, dtype=x.dtype)
    context = torch.empty(B, C, width, dtype=x.dtype)
    return y, context, torch.empty(B, dtype=torch.int64), torch.empty(B, dtype=torch.int64)


def stream_rows(lengths, valid, ended, last, lengths_out, emitted) -> tuple:
    """A stream's counters as addresses; they must be dense and live until the kernel is done."""
    return (
        0 if lengths is None else lengths.data_ptr(),
        0 if valid is None else valid.data_ptr(),
        0 if ended is None else ended.data_ptr(),
        int(last),
        lengths_out.data_ptr(),
        emitted.data_ptr(),
    )


def dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _time_dense(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def _run(x, matrix, bias, residual, carried, rows, results, sizes, acts, layout) -> None:
    # copies made here must live, by name, until the kernel has read them
    out, context_out, lengths_out, emitted = results
    x, residual, bias = _time_dense(x), _time_dense(residual), dense(bias)
    context, lengths, valid, ended = (dense(t) for t in (*carried, *rows[:2]))
    before, before_alpha, before_gain, after, after_alpha, after_gain = acts
    params = [dense(t) for t in (before_alpha, before_gain, after_alpha, after_gain)]
    if layout == "rows" and matrix.shape[1] > FEW:
        matrix, layout = _panels_now(matrix), "conv_panels"
    elif layout == "rows":
        matrix = matrix.contiguous()
    arrays = [array_or_none(t) for t in params]
    _cpu.causal_conv(
        array(x),
        array(matrix),
        array_or_none(bias),
        array_or_none(residual),
        array_or_none(context),
        array(context_out),
        stream_rows(lengths, valid, ended, rows[2], lengths_out, emitted),
        array(out),
        sizes,
        before,
        *arrays[:2],
        after,
        *arrays[2:],
        layout != "rows",
        torch.get_num_threads(),
    )


def _panels_now(matrix: Tensor) -> Tensor:
    """Raw weights packed in passing: one more pass over them in every call."""
    format = next(name for name, dtype in FORMATS.items() if dtype == matrix.dtype)
    return pack_conv_panels(matrix.flatten(0, 1).unsqueeze(2), format, 1, 1, len(matrix), False)
