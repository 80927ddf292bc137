"""Causal convolutions on the CUDA kernels: `causal_conv.cu`, launched for outputs and for a state."""

import struct

import torch
from torch import Tensor

from .._core import cuda as cuda_common
from .._core import launch
from .._core.cuda import COPY_BYTES, TYPES
from .._core.support import Support
from . import CAUSAL_CONV1D, CAUSAL_CONV_TRANSPOSE1D, cuda_plan
from .cuda_plan import THREADS, Plan, Shape

OP = "causal_conv"
_ACTS = ("none", "silu", "elu", "gelu", "gelu_tanh", "tanh", "snake")
_TYPES = {dtype: i for i, dtype in enumerate(TYPES)}
_PARAMS = struct.Struct("<17Q12q36i")  # CausalConvParams of causal_conv_rows.cuh
_WARPS = THREADS // 32
_SOURCES = (launch.source(OP), cuda_plan.__file__, cuda_common.__file__)


def _conv_shape(x, n, outputs, kernel, stride, dilation, groups, before, **_) -> Shape:
    sizes = x.shape[1] // groups, n // groups, groups, kernel, stride, dilation
    return Shape(x.shape[0], outputs, *sizes, 0, (kernel - 1) * dilation, *_elements(x, before))


def _transpose_shape(x, n, outputs, kernel, stride, dilation, groups, before, **_) -> Shape:
    sizes = x.shape[1] // groups, n // groups, groups, kernel, 1, dilation
    return Shape(x.shape[0], outputs, *sizes, stride, (kernel - 1) * dilation // stride, *_elements(x, before))


def _elements(x: Tensor, before: str) -> tuple[int, bool, int]:
    """size, fast and parts of a Shape. An activated input is the sum of two 16-bit values: rounded
    to one it would cost as much as rounding the output does, and more behind some activations.
    """
    two = x.element_size() == 2 and before != "none"
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
    made = cuda_plan.plan(shape, there.multi_processor_count, there.shared_memory_per_block_optin)
    if not isinstance(made, str) and made.blocks >= 1 << 31:
        return f"there are {made.blocks} tiles; a launch takes less than 2^31"
    return made


def _support(shape_of) -> Support:
    def rule(x, weight, **rest) -> str | None:
        reason = launch.unavailable_reason(OP, x.device)
        if reason is not None:
            return reason
        if x.dtype not in (weight.dtype, torch.float32):
            return f"weight is {weight.dtype}, x {x.dtype}; it takes x's type, or any with float32 x"
        plan = _plan(shape_of(x, **rest), x.device)
        return plan if isinstance(plan, str) and plan else None

    return Support(
        floats=("x", "weight", "bias", "residual"),
        float32=("before_alpha", "before_gain", "after_alpha", "after_gain"),
        contiguous=("next_context", "next_lengths", "emitted"),
        disjoint=("out",),
        layouts=("rows",),
        rule=rule,
    )


@CAUSAL_CONV1D.implementation("cuda", _support(_conv_shape), sources=_SOURCES, flags=launch.FLAGS)
def causal_conv1d(**args):
    _run(_conv_shape(**args), **args, flush=0)


@CAUSAL_CONV_TRANSPOSE1D.implementation("cuda", _support(_transpose_shape), sources=_SOURCES, flags=launch.FLAGS)
def causal_conv_transpose1d(**args):
    _run(_transpose_shape(**args), **args, left_pad=0, replicate=False)


def _run(
    shape: Shape,
    x,
    weight,
    bias,
    residual,
    context,
    lengths,
    valid,
    ended,
    last,
    left_pad,
    replicate,
    flush,
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
) -> None:
    B, L = x.shape[0], x.shape[2]
    if B == 0:
        return
    # copies made here live, by name, until the kernels are launched; then the stream orders them
    weight, bias = weight.contiguous(), _dense(bias)
    context, lengths, valid, ended = map(_dense, (context, lengths, valid, ended))
    params = [_dense(t) for t in (before_alpha, before_gain, after_alpha, after_gain)]
    plan = _plan(shape, x.device) or Plan(*[0] * 13, "", 0, 0)
    # no context, and counters that blocks need not read: no launch for the state
    alone = plan.blocks > 0 and shape.taps == shape.stride == 1 and not shape.up
    seen = None
    if lengths is not None and next_lengths.data_ptr() == lengths.data_ptr():
        seen = torch.empty_like(lengths) if plan.blocks else lengths.clone()
    copy, columns = COPY_BYTES // x.element_size(), shape.N * shape.taps if shape.up else 0
    w_fast = weight.dtype == x.dtype and weight.data_ptr() % COPY_BYTES == 0
    w_fast = w_fast and (columns or shape.C * shape.taps) % copy == 0
    if shape.up and plan.rows_all > 1:
        w_fast = w_fast and plan.channels * shape.taps % copy == 0
    residual_fast = residual is not None and residual.dtype == x.dtype and _by_eights(residual)
    tensors = (x, weight, bias, residual, context, *params, lengths, valid, ended)
    tensors += (out, next_context, next_lengths, emitted, seen)
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
        left_pad,
        flush,
        replicate,
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
