"""Linear layers and the grouped matrix product."""

import torch
from torch import Tensor

from .._core import checks
from .._core.op import Op
from .._core.packing import CPU_FORMATS, FORMATS, QUANTISED, PackedLinear, native_packing, quantised, resolve_format

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swiglu")


def _linear_fake(x: Tensor, activation: str, n: int, **_) -> Tensor:
    return x.new_empty((*x.shape[:-1], n // 2 if activation == "swiglu" else n))


LINEAR = Op(
    __name__,
    "linear",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation, str layout, int n, Tensor? scale, "
    "str format -> Tensor",
    results="out",
    fake=_linear_fake,
    backends=("reference", "cpu", "triton"),
)
GROUPED_GEMM = Op(
    __name__,
    "grouped_gemm",
    "Tensor x, Tensor w, Tensor offsets -> Tensor",
    results="out",
    fake=lambda x, w, offsets: x.new_empty((x.shape[0], w.shape[1])),
    backends=("reference", "triton"),
)


@LINEAR.public_function
def linear(
    x: Tensor,
    weight: Tensor | PackedLinear,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """act(x W^T + b) + residual, in one read of W.

    x [..., K]; weight [N, K] or packed; bias [N]; activation None, "silu", "gelu" (erf),
    "gelu_tanh", or "swiglu": N = 2I rows, gate then up -> silu(gate) * up [..., I]; residual
    [..., N_out]. Returns [..., N_out] in x.dtype, summed in float32. float32 x with 16-bit weights
    is computed in float32. With an "int8_dyn" weight the rows of x are quantised to int8. Raises
    InputError on a wrong shape, type or device.
    """
    scale, format = None, ""
    if type(weight) is PackedLinear:
        matrix, layout, n, k = weight.weight, weight.layout, weight.n, weight.k
        scale, format = weight.scale, weight.format
    else:
        checks.rank("linear", "weight", weight, "[N, K]", 2)
        matrix, layout = weight, "rows"
        n, k = weight.shape
    shape = x.shape
    if not shape or shape[-1] != k:
        checks.fail("linear", "x", f"[..., K] with K = {k}", list(shape))
    if x.dtype not in checks.FLOATS:
        checks.floating("linear", "x", x)
    if scale is None and matrix.dtype not in checks.FLOATS:
        checks.floating("linear", "weight", matrix)
    if matrix.device != x.device:
        checks.device("linear", x, "weight", matrix)
    if bias is not None and bias.shape != (n,):
        checks.shape("linear", "bias", bias, "[N]", (n,))
    if activation is None:
        activation = "none"
    else:
        _activation("linear", activation, (n, k))
    if layout == "panels_swiglu" and activation != "swiglu":
        checks.fail("linear", "activation", "swiglu, for which weight was packed", repr(activation))
    if residual is not None:
        width = n // 2 if activation == "swiglu" else n
        if residual.shape != (*shape[:-1], width):
            checks.shape("linear", "residual", residual, "[..., N_out]", (*shape[:-1], width))
    return LINEAR.call(
        backend,
        x=x,
        weight=matrix,
        bias=bias,
        residual=residual,
        activation=activation,
        layout=layout,
        n=n,
        scale=scale,
        format=format,
    )


def pack_linear(
    weight: Tensor, *, format: str | None = None, activation: str | None = None, backend: str | None = None
) -> PackedLinear:
    """Prepare weight [N, K] once, at load, for `linear` on its device.

    format "fp32", "bf16" or "fp16", None keeps the tensor's own type; "int8" and "fp8" (e4m3)
    quantise the weight with one scale per row, "int8_dyn" is "int8" with x quantised by `linear` as
    well. activation: what `linear` will be asked to apply, a hint for the layout. On the CPU the
    native backend's panels where it serves; else rows. Raises InputError, and BackendError for a
    named backend that cannot pack.
    """
    checks.rank("pack_linear", "weight", weight, "[N, K]", 2)
    format = resolve_format("pack_linear", weight, format, (*FORMATS, *QUANTISED))
    if activation is not None:
        _activation("pack_linear", activation, weight.shape)
    n, k = weight.shape
    weight = weight.detach()
    cpu = native_packing("pack_linear", weight, format, backend, CPU_FORMATS)
    scale = None
    if format in QUANTISED:
        weight, scale = quantised("pack_linear", weight, format)
    if cpu is None:
        rows = weight if scale is not None else weight.to(FORMATS[format]).contiguous()
        return PackedLinear(rows, "rows", n, k, format, scale)
    swiglu = activation == "swiglu"
    panels = cpu.pack_panels(weight, format, swiglu=swiglu)
    return PackedLinear(panels, "panels_swiglu" if swiglu else "panels", n, k, format, scale)


def _activation(op: str, activation: str, weight: tuple[int, int]) -> None:
    if activation not in _ACTIVATIONS:
        checks.fail(op, "activation", f"None or one of {_ACTIVATIONS}", repr(activation))
    if activation == "swiglu" and weight[0] % 2:
        checks.fail(op, "weight", "[2I, K] for swiglu", list(weight))


@GROUPED_GEMM.public_function
def grouped_gemm(x: Tensor, w: Tensor, offsets: Tensor, *, backend: str | None = None) -> Tensor:
    """x [M, K], w [E, N, K] -> [M, N]: rows offsets[e] : offsets[e+1] are multiplied with w[e]^T.

    offsets [E+1] int32, from 0 to M, not decreasing; empty groups are allowed.
    """
    checks.rank("grouped_gemm", "w", w, "[E, N, K]", 3)
    checks.rank("grouped_gemm", "x", x, "[M, K]", 2)
    if x.shape[1] != w.shape[2]:
        checks.shape("grouped_gemm", "x", x, "[M, K]", (x.shape[0], w.shape[2]))
    checks.shape("grouped_gemm", "offsets", offsets, "[E+1]", (w.shape[0] + 1,))
    checks.dtype("grouped_gemm", "offsets", offsets, torch.int32)
    checks.floating("grouped_gemm", "x", x)
    checks.floating("grouped_gemm", "w", w)
    checks.device("grouped_gemm", x, "w", w)
    return GROUPED_GEMM.call(backend, x=x, w=w, offsets=offsets)
