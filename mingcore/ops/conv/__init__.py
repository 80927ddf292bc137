"""Causal convolutions over time, streamed: the public functions and the state of a stream.

Rows of a batch may be at different places: `valid` says how many of a chunk's inputs are a row's
own (0: it sits out and its state stays), `last` ends a stream, row by row where it is a tensor.
Any split of the inputs into chunks gives the same outputs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._core import checks
from .._core.op import InPlaceForm, Op
from .._core.packing import FORMATS, native_packing, resolve_format
from .packing import PackedConv, context_width, pack_conv_panels

ACTIVATIONS = ("silu", "elu", "gelu", "gelu_tanh", "tanh", "snake")
Snake = tuple[Tensor, Tensor]

_OPERANDS = "Tensor weight, Tensor? bias, Tensor? residual"
_STREAM = "Tensor? valid, Tensor? ended, bool last"
_SIZES = "int kernel, int stride, int dilation, int groups"
_ACTIVATIONS = (
    "str before, Tensor? before_alpha, Tensor? before_gain, str after, Tensor? after_alpha, Tensor? after_gain"
)


def _results(x: Tensor, n: int, outputs: int, width: int) -> tuple[Tensor, ...]:
    B, C, _ = x.shape
    lengths, emitted = (x.new_empty(B, dtype=torch.int64) for _ in range(2))
    return x.new_empty(B, n, outputs), x.new_empty(B, C, width), lengths, emitted


def _op(name: str, own: str, transposed: bool) -> Op:
    """own: the arguments of this kind of convolution alone."""
    options = f"{_SIZES}, {own}, {_ACTIVATIONS}, str layout, int n"
    return Op(
        __name__,
        name,
        f"Tensor x, {_OPERANDS}, Tensor? context, Tensor? lengths, {_STREAM}, SymInt outputs, {options} "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        results="out next_context next_lengths emitted",
        fake=lambda x, n, outputs, kernel, stride, dilation, **_: _results(
            x, n, outputs, context_width(kernel, stride, dilation, transposed)
        ),
        backends=("reference", "cpu", "triton", "cuda"),
        in_place=InPlaceForm(
            "Tensor x, Tensor(a!) out, Tensor(b!) context, Tensor(c!) lengths, Tensor(d!) emitted, "
            f"{_OPERANDS}, {_STREAM}, {options} -> ()",
            writes={"out": "out", "next_context": "context", "next_lengths": "lengths", "emitted": "emitted"},
            outputs=lambda args: args["out"].shape[2],
        ),
    )


CAUSAL_CONV1D = _op("causal_conv1d", "int left_pad, bool replicate", transposed=False)
CAUSAL_CONV_TRANSPOSE1D = _op("causal_conv_transpose1d", "int flush", transposed=True)


@dataclass
class ConvState:
    """What a streamed convolution carries from one chunk to the next.

    context [B, C_in, W]: the newest W inputs of each row, as they came (before any activation);
    where a row has had none it is not read. W = (k - 1) dilation, or, transposed,
    ((k - 1) dilation) // stride. lengths [B] int64: inputs that each row has had. emitted [B]
    int64: how many outputs of the last call belong to each row; the rest of it is zeros. offset:
    inputs minus stride * outputs so far, known to the host while all rows are alike, else None: a
    call then returns as many outputs as any row might have.
    """

    context: Tensor
    lengths: Tensor
    emitted: Tensor
    offset: int | None = 0

    @classmethod
    def start(
        cls,
        batch: int,
        channels: int,
        width: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "ConvState":
        """The state before the first input; `width` is W (`PackedConv.context`)."""
        context = torch.zeros(batch, channels, width, dtype=dtype, device=device)
        lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        return cls(context, lengths, torch.zeros_like(lengths))

    def reset(self, rows: Iterable[int] | None = None) -> None:
        """Rows (None: all) begin a new stream, in place."""
        if rows is None:
            self.lengths.zero_()
            self.offset = 0
        else:
            self.lengths[torch.tensor(list(rows), device=self.lengths.device)] = 0
            self.offset = None

    def clone(self) -> "ConvState":
        tensors = (self.context.clone(), self.lengths.clone(), self.emitted.clone())
        return ConvState(*tensors, self.offset)

    @property
    def nbytes(self) -> int:
        return self.context.nbytes + self.lengths.nbytes + self.emitted.nbytes


@CAUSAL_CONV1D.public_function
def causal_conv1d(
    x: Tensor,
    weight: Tensor | PackedConv,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    left_pad: int | None = None,
    pad_mode: str = "zeros",
    activation: str | None = None,
    snake: Snake | None = None,
    activation_before: str | None = None,
    snake_before: Snake | None = None,
    residual: Tensor | None = None,
    state: ConvState | None = None,
    valid: Tensor | None = None,
    last: bool | Tensor = False,
    backend: str | None = None,
) -> tuple[Tensor, ConvState]:
    """act(conv(act_before(x)) + bias) + residual, continuing a stream.

    x [B, C_in, L], any L >= 0; weight [C_out, C_in/groups, k] or packed; bias [C_out]. Output t
    reads the inputs t * stride - left_pad + i * dilation, i < k; left_pad None is
    (k - 1) dilation + 1 - stride or 0, so that `stride` inputs give one output. Before the first
    input there are zeros, or with pad_mode "replicate" the first input. Activations: "silu", "elu",
    "gelu" (erf), "gelu_tanh", "tanh", "snake": x + gain sin(alpha x)^2 with snake = (alpha, gain),
    float32 [C] each; gain is 1/alpha, or 1/beta. residual [B, C_out, T]. state None: new streams.
    valid [B] int64 (None: L each), last (bool or bool [B]): see above. `last` pads on the right
    until every input is covered, as pad_mode says, and the row's next stream starts new.
    Returns y [B, C_out, T] in x.dtype, summed in float32, and the next state; T is L / stride
    where it divides and rows are alike, else see `ConvState`. Raises InputError.
    """
    acts = activation_before, snake_before, activation, snake
    kind = stride, dilation, groups, left_pad, pad_mode
    args, outputs, offset = _conv_call("causal_conv1d", x, weight, bias, residual, *kind, acts, state, valid, last)
    context, lengths = (None, None) if state is None else (state.context, state.lengths)
    y, *carried = CAUSAL_CONV1D.call(backend, **args, context=context, lengths=lengths, outputs=outputs)
    return y, ConvState(*carried, offset)


@CAUSAL_CONV1D.in_place.public_function
def causal_conv1d_(
    x: Tensor,
    out: Tensor,
    weight: Tensor | PackedConv,
    bias: Tensor | None = None,
    *,
    state: ConvState,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    left_pad: int | None = None,
    pad_mode: str = "zeros",
    activation: str | None = None,
    snake: Snake | None = None,
    activation_before: str | None = None,
    snake_before: Snake | None = None,
    residual: Tensor | None = None,
    valid: Tensor | None = None,
    last: bool | Tensor = False,
    backend: str | None = None,
) -> None:
    """`causal_conv1d` into `out` [B, C_out, T] in x.dtype; `state` is changed in place.

    For streams without allocation and for graphs. T is what `causal_conv1d` would return.
    """
    acts = activation_before, snake_before, activation, snake
    kind = stride, dilation, groups, left_pad, pad_mode
    rows = valid, last
    args, _, offset = _conv_call("causal_conv1d_", x, weight, bias, residual, *kind, acts, state, *rows, out)
    CAUSAL_CONV1D.in_place.call(
        backend, **args, out=out, context=state.context, lengths=state.lengths, emitted=state.emitted
    )
    state.offset = offset


@CAUSAL_CONV_TRANSPOSE1D.public_function
def causal_conv_transpose1d(
    x: Tensor,
    weight: Tensor | PackedConv,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    trim_right: int | None = None,
    activation: str | None = None,
    snake: Snake | None = None,
    activation_before: str | None = None,
    snake_before: Snake | None = None,
    residual: Tensor | None = None,
    state: ConvState | None = None,
    valid: Tensor | None = None,
    last: bool | Tensor = False,
    backend: str | None = None,
) -> tuple[Tensor, ConvState]:
    """act(conv_transpose(act_before(x)) + bias) + residual, continuing a stream.

    x [B, C_in, L], any L >= 0; weight [C_in, C_out/groups, k] or packed (with this stride and
    dilation). Input t adds weight[:, :, i] * x[t] at the output t * stride + i * dilation; L inputs
    give L * stride outputs at once. The (k - 1) dilation + 1 - stride outputs beyond the end are
    dropped; with trim_right fewer than those, `last` gives the others. Where the kernel is shorter
    than the stride the gaps hold act(bias). All else as `causal_conv1d`.
    """
    acts = activation_before, snake_before, activation, snake
    kind = stride, dilation, groups, trim_right
    args, outputs = _transpose_call(
        "causal_conv_transpose1d", x, weight, bias, residual, *kind, acts, state, valid, last
    )
    context, lengths = (None, None) if state is None else (state.context, state.lengths)
    y, *carried = CAUSAL_CONV_TRANSPOSE1D.call(backend, **args, context=context, lengths=lengths, outputs=outputs)
    return y, ConvState(*carried)


@CAUSAL_CONV_TRANSPOSE1D.in_place.public_function
def causal_conv_transpose1d_(
    x: Tensor,
    out: Tensor,
    weight: Tensor | PackedConv,
    bias: Tensor | None = None,
    *,
    state: ConvState,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    trim_right: int | None = None,
    activation: str | None = None,
    snake: Snake | None = None,
    activation_before: str | None = None,
    snake_before: Snake | None = None,
    residual: Tensor | None = None,
    valid: Tensor | None = None,
    last: bool | Tensor = False,
    backend: str | None = None,
) -> None:
    """`causal_conv_transpose1d` into `out` [B, C_out, T] in x.dtype; `state` changes in place."""
    acts = activation_before, snake_before, activation, snake
    kind = stride, dilation, groups, trim_right
    rows = valid, last
    args, _ = _transpose_call("causal_conv_transpose1d_", x, weight, bias, residual, *kind, acts, state, *rows, out)
    CAUSAL_CONV_TRANSPOSE1D.in_place.call(
        backend, **args, out=out, context=state.context, lengths=state.lengths, emitted=state.emitted
    )
    state.offset = 0


def pack_conv(
    weight: Tensor,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    transposed: bool = False,
    format: str | None = None,
    backend: str | None = None,
) -> PackedConv:
    """Prepare a convolution's weight once, at load, for its device.

    weight [C_out, C_in/groups, k], or transposed [C_in, C_out/groups, k]; format "fp32", "bf16" or
    "fp16", None keeps the tensor's own type. On the CPU the native backend's panels where it
    serves, else the weight as it is. Raises InputError, and BackendError for a named backend that
    cannot pack.
    """
    op = "pack_conv"
    checks.rank(op, "weight", weight, "[C_out, C_in/groups, k] or [C_in, C_out/groups, k]", 3)
    for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
        checks.positive(op, name, value)
    first, second, kernel = weight.shape
    if first % groups or not weight.numel():
        checks.fail(op, "weight", f"not empty, its channels a multiple of {groups} groups", list(weight.shape))
    inputs, outputs = (first, second * groups) if transposed else (second * groups, first)
    format = resolve_format(op, weight, format, FORMATS)
    weight, layout = weight.detach(), "rows"
    cpu = native_packing(op, weight, format, backend)
    packed = None
    if cpu is not None:
        packed = pack_conv_panels(cpu.pack_panels, weight, format, stride, dilation, groups, transposed)
    if packed is None:
        packed = weight.to(FORMATS[format]).contiguous()
    else:
        layout = "conv_panels"
    shape = (inputs, outputs, kernel, stride, dilation, groups, transposed)
    return PackedConv(packed, layout, format, *shape)


def _conv_call(
    op, x, weight, bias, residual, stride, dilation, groups, left_pad, pad_mode, acts, state, valid, last, out=None
) -> tuple[dict, int, int | None]:
    """What both forms of causal_conv1d check: the arguments they share, outputs, the next offset."""
    _state(op, state, x)
    flat = _flatten(op, x, weight, stride, dilation, groups, False)
    pad, replicate = _padding(op, flat.kernel, stride, dilation, left_pad, pad_mode)
    span = (flat.kernel - 1) * dilation
    outputs, offset = _outputs(x.shape[2], state, valid, last, span, stride, pad)
    stream = checks.stream_arguments(op, x, valid, last)
    acts = _activations(op, x.device, flat, *acts)
    _operands(op, flat, x, bias, residual, outputs, state, span, out)
    args = _arguments(flat, x, bias, residual, stride, dilation, groups)
    return {**args, "left_pad": pad, "replicate": replicate, **stream, **acts}, outputs, offset


def _transpose_call(
    op, x, weight, bias, residual, stride, dilation, groups, trim_right, acts, state, valid, last, out=None
) -> tuple[dict, int]:
    """What both forms of causal_conv_transpose1d check: the arguments they share, and outputs."""
    _state(op, state, x)
    flat = _flatten(op, x, weight, stride, dilation, groups, True)
    width = context_width(flat.kernel, stride, dilation, True)
    flush = _flush(op, flat.kernel, stride, dilation, trim_right)
    outputs = x.shape[2] * stride + (0 if last is False else flush)
    stream = checks.stream_arguments(op, x, valid, last)
    acts = _activations(op, x.device, flat, *acts)
    _operands(op, flat, x, bias, residual, outputs, state, width, out)
    args = _arguments(flat, x, bias, residual, stride, dilation, groups)
    return {**args, "flush": flush, **stream, **acts}, outputs


def _arguments(flat, x, bias, residual, stride, dilation, groups) -> dict:
    return {
        "x": x,
        "weight": flat.matrix,
        "bias": bias,
        "residual": residual,
        "kernel": flat.kernel,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "layout": flat.layout,
        "n": flat.n,
    }


class _Flat(NamedTuple):
    """A weight taken apart: the tensor, its layout, the number of outputs, inputs and taps."""

    matrix: Tensor
    layout: str
    n: int
    inputs: int
    kernel: int


def _flatten(op, x, weight, stride, dilation, groups, transposed) -> _Flat:
    if x.dim() != 3:
        checks.rank(op, "x", x, "[B, C_in, L]", 3)
    if x.dtype not in checks.FLOATS:
        checks.floating(op, "x", x)
    if stride < 1 or dilation < 1 or groups < 1:
        for name, value in (("stride", stride), ("dilation", dilation), ("groups", groups)):
            checks.positive(op, name, value)
    if type(weight) is PackedConv:
        if weight.transposed != transposed:
            kind = "transposed" if transposed else "ordinary"
            checks.fail(op, "weight", f"packed for the {kind} convolution", "the other kind")
        for name, value in (("groups", groups), ("stride", stride), ("dilation", dilation)):
            if value != getattr(weight, name):
                checks.fail(op, name, f"{getattr(weight, name)}, for which weight was packed", value)
        flat = _Flat(weight.weight, weight.layout, weight.out_channels, weight.in_channels, weight.kernel)
    else:
        dims = "[C_in, C_out/groups, k]" if transposed else "[C_out, C_in/groups, k]"
        checks.rank(op, "weight", weight, dims, 3)
        checks.floating(op, "weight", weight)
        first, second, kernel = weight.shape
        if first % groups or not first or not second or not kernel:
            checks.fail(op, "weight", f"{dims} for {groups} groups", list(weight.shape))
        n, inputs = (second * groups, first) if transposed else (first, second * groups)
        flat = _Flat(weight, "rows", n, inputs, kernel)
    if x.shape[1] != flat.inputs:
        checks.fail(op, "x", f"[B, C_in, L] with C_in = {flat.inputs}", list(x.shape))
    if flat.matrix.device != x.device:
        checks.device(op, x, "weight", flat.matrix)
    return flat


def _padding(op, kernel, stride, dilation, left_pad, pad_mode) -> tuple[int, bool]:
    span = (kernel - 1) * dilation
    if left_pad is None:
        left_pad = max(span + 1 - stride, 0)
    if not 0 <= left_pad <= span:
        checks.fail(op, "left_pad", f"in 0..(k - 1) dilation = 0..{span}", left_pad)
    if pad_mode not in ("zeros", "replicate"):
        checks.fail(op, "pad_mode", "'zeros' or 'replicate'", repr(pad_mode))
    return left_pad, pad_mode == "replicate"


def _flush(op, kernel, stride, dilation, trim_right) -> int:
    """How many outputs beyond those of the inputs `last` gives."""
    beyond = max((kernel - 1) * dilation + 1 - stride, 0)
    if trim_right is None:
        return 0
    if not 0 <= trim_right <= beyond:
        checks.fail(op, "trim_right", f"in 0..(k - 1) dilation + 1 - stride = 0..{beyond}", trim_right)
    return beyond - trim_right


def _outputs(L, state, valid, last, span, stride, pad) -> tuple[int, int | None]:
    """How many outputs this call returns, and the next state's offset."""
    offset = 0 if state is None else state.offset
    ends = last is not False
    if stride == 1 and pad == span:  # one output per input, whatever the row has seen
        return L, 0
    if offset is None or valid is not None or isinstance(last, Tensor):
        return -(-L // stride) + (1 if ends and stride > 1 else 0), None
    have = offset + L + pad
    if ends:
        reach = have - max(span + 1 - stride, 0)
        anything = state is not None or L > 0
        return (torch.sym_max(-(-reach // stride), 0) if anything else 0), 0
    count = torch.sym_max((have - span - 1) // stride + 1, 0)
    return count, offset + L - count * stride


def _state(op: str, state: ConvState | None, x: Tensor) -> None:
    if state is not None and not isinstance(state, ConvState):
        checks.fail(op, "state", "a ConvState or None", type(state).__name__)


_NO_ACTIVATIONS = {
    "before": "none",
    "before_alpha": None,
    "before_gain": None,
    "after": "none",
    "after_alpha": None,
    "after_gain": None,
}


def _activations(op, device, flat, before, snake_before, after, snake) -> dict:
    if before is None and after is None and snake_before is None and snake is None:
        return _NO_ACTIVATIONS
    parts = (
        *_activation(op, device, "activation_before", before, "snake_before", snake_before, flat.inputs),
        *_activation(op, device, "activation", after, "snake", snake, flat.n),
    )
    return dict(zip(_NO_ACTIVATIONS, parts, strict=True))


def _activation(op, device, name, activation, snake_name, snake, channels):
    if activation is not None and activation not in ACTIVATIONS:
        checks.fail(op, name, f"None or one of {ACTIVATIONS}", repr(activation))
    if activation != "snake":
        if snake is not None:
            checks.fail(op, snake_name, f"None where {name} is {activation!r}", "(alpha, gain)")
        return activation or "none", None, None
    if snake is None:
        checks.fail(op, snake_name, "(alpha, gain) for activation 'snake'", None)
    alpha, gain = snake
    shape = (channels,)
    if alpha.shape == gain.shape == shape and alpha.dtype == gain.dtype == torch.float32:
        if alpha.device == gain.device == device:
            return activation, alpha, gain
    for part, tensor in (("alpha", alpha), ("gain", gain)):
        checks.shape(op, f"{part} of {snake_name}", tensor, "[C]", (channels,))
        checks.wide(op, f"{part} of {snake_name}", tensor)
        if tensor.device != device:
            checks.fail(op, f"{part} of {snake_name}", f"on {device}", tensor.device)
    return activation, alpha, gain


def _operands(op, flat, x, bias, residual, outputs, state, width, out=None) -> None:
    B = x.shape[0]
    if bias is not None and not (bias.shape == (flat.n,) and bias.dtype in checks.FLOATS and bias.device == x.device):
        checks.shape(op, "bias", bias, "[C_out]", (flat.n,))
        checks.floating(op, "bias", bias)
        checks.device(op, x, "bias", bias)
    expected = (B, flat.n, outputs)
    if residual is not None:
        checks.shape(op, "residual", residual, "[B, C_out, T]", expected)
        checks.floating(op, "residual", residual)
        checks.device(op, x, "residual", residual)
    if out is not None:
        checks.shape(op, "out", out, "[B, C_out, T]", expected)
        checks.dtype(op, "out", out, x.dtype)
        checks.device(op, x, "out", out)
    shape = (B, flat.inputs, width)
    if state is not None and not (
        state.context.shape == shape
        and state.context.dtype == x.dtype
        and state.context.device == x.device
        and state.lengths.shape == (B,)
    ):
        checks.shape(op, "state.context", state.context, "[B, C_in, W]", shape)
        checks.dtype(op, "state.context", state.context, x.dtype)
        checks.device(op, x, "state.context", state.context)
        checks.shape(op, "state.lengths", state.lengths, "[B]", (B,))
