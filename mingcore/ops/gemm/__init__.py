"""Linear layers, norms, rotary embedding and SwiGLU: the public functions."""

import math
from collections.abc import Collection
from types import ModuleType

import torch
from torch import Tensor

from ...errors import BackendError
from .._core import checks, registry
from .._core.dispatch import call
from .._core.packing import CPU_FORMATS, FORMATS, QUANTISED, PackedLinear, format_of, panels_shape, quantise

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "swiglu")


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
    args = (x, matrix, bias, residual, activation, layout, n, scale, format)
    return call("linear", backend, *args)


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


def quantised(op: str, weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """`quantise`, of weights that must be finite."""
    stored, scale = quantise(weight.detach(), format)
    if not (scale.is_meta or scale.isfinite().all()):
        checks.fail(op, "every weight", f"finite, to be {format}", "infinity or NaN")
    return stored, scale


def native_packing(
    op: str, weight: Tensor, format: str, backend: str | None, formats: Collection[str] = ("fp32", "bf16", "fp16")
) -> ModuleType | None:
    """The adapter that packs this weight for the CPU, or None where rows stay rows.

    formats: those that the op has panels for.
    """
    reason = packs_natively(weight.device.type, format, backend, formats)
    if reason is None:
        from .._core import cpu

        return cpu
    if registry.named_backends(backend) == ("cpu",):
        raise BackendError(f"{op}: {reason}")
    return None


def packs_natively(
    device: str, format: str, backend: str | None = None, formats: Collection[str] = CPU_FORMATS
) -> str | None:
    """Why such weights stay rows instead of being packed for the CPU, or None where they do not."""
    names = registry.named_backends(backend)
    if names and "cpu" not in names:
        return f"backend {','.join(names)} was named"
    reason = registry.load("cpu")
    if device != "cpu" or format not in formats:
        reason = f"the cpu backend does not pack {format} weights of {device} tensors"
    return reason


def packed_bytes(n: int, k: int, format: str, device: str, *, swiglu: bool = False) -> int:
    """Of a matrix [N, K] and its scales, as it would be packed now for this kind of device."""
    native = packs_natively(device, format) is None
    shape = panels_shape(n, k, format, swiglu) if native else (n, k)
    dtype = QUANTISED.get(format) or FORMATS[format]
    return math.prod(shape) * dtype.itemsize + (4 * n if format in QUANTISED else 0)


def _activation(op: str, activation: str, weight: tuple[int, int]) -> None:
    if activation not in _ACTIVATIONS:
        checks.fail(op, "activation", f"None or one of {_ACTIVATIONS}", repr(activation))
    if activation == "swiglu" and weight[0] % 2:
        checks.fail(op, "weight", "[2I, K] for swiglu", list(weight))


def resolve_format(op: str, weight: Tensor, format: str | None, formats: Collection[str]) -> str:
    """`format` if it is one of `formats`; None stands for the weight's own type."""
    checks.floating(op, "weight", weight)
    if format is None:
        return format_of(weight.dtype)
    if format not in formats:
        checks.fail(op, "format", f"one of {', '.join(formats)}", repr(format))
    return format


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
    return call("grouped_gemm", backend, x, w, offsets)
