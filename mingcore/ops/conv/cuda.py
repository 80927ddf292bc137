"""The `cuda` backend's convolutions: `causal_conv.cu`, launched for outputs and for a state."""

import struct

import torch
from torch import Tensor

from .._core import cuda as cuda_common
from .._core import launch
from .._core.cuda import COPY_BYTES, TYPES, unfit
from .._core.registry import register
from . import cuda_plan as cuda_conv_plan
from .cuda_plan import THREADS, Plan, Shape

OP = "causal_conv"
_ACTS = ("none", "silu", "elu", "gelu", "gelu_tanh", "tanh", "snake")
_TYPES = {dtype: i for i, dtype in enumerate(TYPES)}
_PARAMS = struct.Struct("<17Q12q36i")  # CausalConvParams of causal_conv_rows.cuh
_WARPS = THREADS // 32
_SOURCES = (launch.source(OP), __file__, cuda_conv_plan.__file__, cuda_common.__file__)


def _unfit(x, weight, bias, residual, layout, params) -> str | None:
    reason = launch.why_not(OP, x.device)
    if reason is not None:
        return reason
    if layout != "rows":
        return f"the layout is {layout!r}; it takes rows"
    for name, t in (("x", x), ("weight", weight), ("bias", bias), ("residual", residual)):
        if t is not None and t.dtype not in TYPES:
            return f"{name} is {t.dtype}; it takes float32, bfloat16 and float16"
    if x.dtype not in (weight.dtype, torch.float32):
        return f"weight is {weight.dtype}, x {x.dtype}; it takes x's type, or any with float32 x"
    if any(t is not None and t.dtype != torch.float32 for t in params):
        return "alpha or gain is not float32"
    return unfit(("x", "weight", "bias", "residual"), (x, weight, bias, residual))


def _conv_shape(x, T, kernel, stride, dilation, groups, rest) -> Shape:
    sizes = x.shape[1] // groups, rest[-1] // groups, groups, kernel, stride, dilation
    return Shape(x.shape[0], T, *sizes, 0, (kernel - 1) * dilation, *_elements(x, rest))


def _up_shape(x, T, kernel, stride, dilation, groups, rest) -> Shape:
    sizes = x.shape[1] // groups, rest[-1] // groups, groups, kernel, 1, dilation
    return Shape(x.shape[0], T, *sizes, stride, (kernel - 1) * dilation // stride, *_elements(x, rest))


def _elements(x: Tensor, rest: tuple) -> tuple[int, bool, int]:
    """size, fast and parts of a Shape. An activated input is the sum of two 16-bit values: rounded
    to one it would cost as much as rounding the output does, and more behind some activations.
    """
    two = x.element_size() == 2 and rest[-8] != "none"
    return x.element_size(), _by_eights(x), 1 + two


def _by_eights(t: Tensor) -> bool:
    """Whether every eighth element of a row [B, C, L] is where a copy of 16 bytes can start."""
    B, C, L = t.shape
    strides_fit = (B == 1 or t.stride(0) % 8 == 0) and (C == 1 or t.stride(1) % 8 == 0)
    return strides_fit and (L <= 1 or t.stride(2) == 1) and t.data_ptr() % COPY_BYTES == 0


def _plan(shape: Shape, device: torch.device) -> Plan | str:
    there = torch.cuda.get_device_properties(device)
    if shape.T == 0 or shape.B == 0:
        return ""
    made = cuda_conv_plan.plan(shape, there.multi_processor_count, there.shared_memory_per_block_optin)
    if not isinstance(made, str) and made.blocks >= 1 << 31:
        return f"there are {made.blocks} tiles; a launch takes less than 2^31"
    return made


def _why_not(shape_of, x, weight, bias, residual, T, kernel, stride, dilation, groups, rest):
    *acts, layout, _ = rest[-8:]
    params = (*acts[1:3], *acts[4:6])
    reason = _unfit(x, weight, bias, residual, layout, params)
    if reason is None:
        made = _plan(shape_of(x, T, kernel, stride, dilation, groups, rest), x.device)
        reason = made if isinstance(made, str) and made else None
    return reason


def _in_place_reason(x, out, context, lengths, emitted) -> str | None:
    if not (context.is_contiguous() and lengths.is_contiguous() and emitted.is_contiguous()):
        return "the state is not contiguous"
    if torch._debug_has_internal_overlap(out) == 1:
        return f"out overlaps itself (strides {tuple(out.stride())})"
    return None


def _pure_reason(shape_of):
    def why_not(
        x, weight, bias, residual, context, lengths, valid, ended, last, T, kernel, stride, dilation, groups, *rest
    ):
        sizes = T, kernel, stride, dilation, groups
        return _why_not(shape_of, x, weight, bias, residual, *sizes, rest)

    return why_not


def _reason_in_place(shape_of):
    def why_not(
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
        *rest,
    ):
        sizes = out.shape[2], kernel, stride, dilation, groups
        reason = _in_place_reason(x, out, context, lengths, emitted)
        return reason or _why_not(shape_of, x, weight, bias, residual, *sizes, rest)

    return why_not


@register("causal_conv1d", "cuda", _pure_reason(_conv_shape), sources=_SOURCES, flags=launch.FLAGS)
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
    shape = _conv_shape(x, outputs, kernel, stride, dilation, groups, rest)
    results = _fresh(x, rest[-1], outputs, shape.span)
    _run(
        shape,
        (x, weight, bias, residual),
        (context, lengths, valid, ended, last),
        results,
        (left_pad, 0, replicate),
        rest,
    )
    return results


@register("causal_conv1d_", "cuda", _reason_in_place(_conv_shape), sources=_SOURCES, flags=launch.FLAGS)
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
    shape = _conv_shape(x, out.shape[2], kernel, stride, dilation, groups, rest)
    results = out, context, lengths, emitted
    _run(
        shape,
        (x, weight, bias, residual),
        (context, lengths, valid, ended, last),
        results,
        (left_pad, 0, replicate),
        rest,
    )


@register("causal_conv_transpose1d", "cuda", _pure_reason(_up_shape), sources=_SOURCES, flags=launch.FLAGS)
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
    shape = _up_shape(x, outputs, kernel, stride, dilation, groups, rest)
    results = _fresh(x, rest[-1], outputs, shape.span)
    _run(shape, (x, weight, bias, residual), (context, lengths, valid, ended, last), results, (0, flush, False), rest)
    return results


@register("causal_conv_transpose1d_", "cuda", _reason_in_place(_up_shape), sources=_SOURCES, flags=launch.FLAGS)
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
    shape = _up_shape(x, out.shape[2], kernel, stride, dilation, groups, rest)
    results = out, context, lengths, emitted
    _run(shape, (x, weight, bias, residual), (context, lengths, valid, ended, last), results, (0, flush, False), rest)


def _fresh(x, n, outputs, span):
    B, C, _ = x.shape
    counters = [torch.empty(B, dtype=torch.int64, device=x.device) for _ in range(2)]
    return x.new_empty(B, n, outputs), x.new_empty(B, C, span), *counters


def _run(shape: Shape, operands, rows, results, ends, rest) -> None:
    """operands: x, weight, bias, residual; ends: left_pad, flush, replicate."""
    x, weight, bias, residual = operands
    context, lengths, valid, ended, last = rows
    out, context_out, lengths_out, emitted = results
    B, _, L = x.shape
    if B == 0:
        return
    before, *before_params, after, after_alpha, after_gain = rest[-8:-2]
    # copies made here live, by name, until the kernels are launched; then the stream orders them
    weight, bias = weight.contiguous(), _dense(bias)
    context, lengths, valid, ended = map(_dense, (context, lengths, valid, ended))
    params = [_dense(t) for t in (*before_params, after_alpha, after_gain)]
    plan = _plan(shape, x.device) or Plan(*[0] * 13, "", 0, 0)
    # no context, and counters that blocks need not read: no launch for the state
    alone = plan.blocks > 0 and shape.taps == shape.stride == 1 and not shape.up
    seen = None
    if lengths is not None and lengths_out.data_ptr() == lengths.data_ptr():
        seen = torch.empty_like(lengths) if plan.blocks else lengths.clone()
    copy, columns = COPY_BYTES // x.element_size(), shape.N * shape.taps if shape.up else 0
    w_fast = weight.dtype == x.dtype and weight.data_ptr() % COPY_BYTES == 0
    w_fast = w_fast and (columns or shape.C * shape.taps) % copy == 0
    if shape.up and plan.rows_all > 1:
        w_fast = w_fast and plan.channels * shape.taps % copy == 0
    residual_fast = residual is not None and residual.dtype == x.dtype and _by_eights(residual)
    tensors = (x, weight, bias, residual, context, *params, lengths, valid, ended)
    tensors += (out, context_out, lengths_out, emitted, seen)
    strides = [s for t in (x, residual, out) for s in ((0, 0, 0) if t is None else t.stride())]
    types = [0 if t is None else _TYPES[t.dtype] for t in (weight, bias, residual)]
    values = _PARAMS.pack(
        *(0 if t is None else t.data_ptr() for t in tensors),
        *strides,
        B,
        L,
        shape.T,
        shape.C,
        shape.N,
        shape.groups,
        shape.taps,
        shape.stride,
        shape.dilation,
        shape.up,
        shape.span,
        *ends,
        last,
        _ACTS.index(before),
        _ACTS.index(after),
        *types,
        shape.fast,
        w_fast,
        _by_eights(out),
        residual_fast,
        *plan[:13],
        alone,
        0,
    )
    device, name = x.device.index, TYPES[x.dtype]
    if plan.blocks:
        kernel = launch.kernel(OP, f"{OP}_{plan.kind}_{name}", device, plan.shared_bytes)
        launch.launch(kernel, (plan.blocks, 1, 1), (THREADS, 1, 1), values)
    if alone:
        return
    lines = B * (shape.groups * shape.C if shape.span else 1)
    kernel = launch.kernel(OP, f"{OP}_state_{name}", device)
    launch.launch(kernel, (-(-lines // _WARPS), 1, 1), (THREADS, 1, 1), values)


def _dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
