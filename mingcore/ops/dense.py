"""Linear layers, norms, rotary embedding and SwiGLU: the public functions."""

import math
from collections.abc import Collection
from types import ModuleType

from torch import Tensor

from ..errors import BackendError
from . import checks, registry
from .dispatch import call
from .packed import (
    CPU_FORMATS,
    FORMATS,
    QUANTISED,
    PackedLinear,
    format_of,
    panels_shape,
    quantise,
)

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
    weight: Tensor,
    *,
    format: str | None = None,
    activation: str | None = None,
    backend: str | None = None,
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
    op: str,
    weight: Tensor,
    format: str,
    backend: str | None,
    formats: Collection[str] = ("fp32", "bf16", "fp16"),
) -> ModuleType | None:
    """The adapter that packs this weight for the CPU, or None where rows stay rows.

    formats: those that the op has panels for.
    """
    reason = packs_natively(weight.device.type, format, backend, formats)
    if reason is None:
        from . import cpu

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


def silu_mul(gate_up: Tensor, *, backend: str | None = None) -> Tensor:
    """silu(gate) * up: gate_up [..., 2I], gate first -> [..., I]. docs/model.md section 2."""
    if gate_up.dim() < 1 or gate_up.shape[-1] % 2:
        checks.fail("silu_mul", "gate_up", "[..., 2I]", list(gate_up.shape))
    checks.floating("silu_mul", "gate_up", gate_up)
    return call("silu_mul", backend, gate_up)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """x * rsqrt(mean(x^2) + eps) * weight: x [..., H], weight [H] -> [..., H] in x.dtype.

    In float32, times the weight, then cast (Zhang and Sennrich 2019; docs/model.md section 2).
    """
    _norm("rms_norm", x, weight)
    return call("rms_norm", backend, x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """(rms_norm(s), s) with s = x + residual, rounded to x.dtype: all [..., H], weight [H]."""
    _norm("add_rms_norm", x, weight)
    if residual.shape != x.shape:
        checks.shape("add_rms_norm", "residual", residual, "[..., H]", x.shape)
    if residual.dtype != x.dtype:
        checks.dtype("add_rms_norm", "residual", residual, x.dtype)
    return call("add_rms_norm", backend, x, residual, weight, eps)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, *, backend: str | None = None
) -> Tensor:
    """(x - mean) * rsqrt(var + eps) * weight + bias, in float32: x [..., H], the others [H]."""
    _norm("layer_norm", x, weight)
    if bias is not None and bias.shape != weight.shape:
        checks.shape("layer_norm", "bias", bias, "[H]", weight.shape)
    return call("layer_norm", backend, x, weight, bias, eps)


def _norm(op: str, x: Tensor, weight: Tensor) -> None:
    shape = x.shape
    if not shape or weight.shape != shape[-1:]:
        checks.shape(op, "weight", weight, "[H]", shape[-1:])
    if x.dtype not in checks.FLOATS:
        checks.floating(op, "x", x)
    if weight.device != x.device:
        checks.device(op, x, "weight", weight)


def rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    rope_heads: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Turn pairs of x [B, T, Hn, D] by the angles of cos, sin [1 or B, T, D/2] (float32).

    Pairs (i, i + D/2), or (2i, 2i+1) when interleaved; only the first `rope_heads` heads (None:
    all). Returns x's shape and type. Su et al. 2021; docs/model.md sections 2 and 3.
    """
    checks.rank("rope", "x", x, "[B, T, Hn, D]", 4)
    B, T, heads, D = x.shape
    _angles("rope", x, cos, sin, B, T, D)
    rope_heads = _rope_heads("rope", rope_heads, heads)
    return call("rope", backend, x, cos, sin, interleaved, rope_heads)


def qkv_rope(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    num_heads: int,
    num_kv_heads: int,
    *,
    interleaved: bool = False,
    rope_heads: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv [B, T, (Hq + 2 Hkv) D] and `rope` q and k.

    Returns q [B, T, Hq, D], k [B, T, Hkv, D], v [B, T, Hkv, D], each a tensor of its own.
    `rope_heads` counts from the first head of q and of k alike.
    """
    checks.rank("qkv_rope", "qkv", qkv, "[B, T, (Hq + 2 Hkv) D]", 3)
    checks.head_groups("qkv_rope", num_heads, num_kv_heads)
    B, T, width = qkv.shape
    heads = num_heads + 2 * num_kv_heads
    if width % heads:
        checks.fail("qkv_rope", "qkv", f"[B, T, {heads} * D]", [B, T, width])
    _angles("qkv_rope", qkv, cos, sin, B, T, width // heads)
    rope_heads = _rope_heads("qkv_rope", rope_heads, num_heads)
    args = (qkv, cos, sin, num_heads, num_kv_heads, interleaved, rope_heads)
    return call("qkv_rope", backend, *args)


def _angles(op: str, x: Tensor, cos: Tensor, sin: Tensor, B: int, T: int, D: int) -> None:
    if D % 2:
        checks.fail(op, "D", "even", D)
    got = cos.shape
    if got != (1, T, D // 2) and got != (B, T, D // 2):
        checks.fail(op, "cos", f"[1 or {B}, T, D/2] = [1 or {B}, {T}, {D // 2}]", list(got))
    if sin.shape != got:
        checks.shape(op, "sin", sin, "[1 or B, T, D/2]", got)
    if x.dtype not in checks.FLOATS:
        checks.floating(op, "x", x)
    if cos.dtype not in checks.WIDE or sin.dtype != cos.dtype:
        checks.wide(op, "cos", cos)
        checks.dtype(op, "sin", sin, cos.dtype)
    if cos.device != x.device:
        checks.device(op, x, "cos", cos)


def _rope_heads(op: str, rope_heads: int | None, heads: int) -> int:
    if rope_heads is None:
        return heads
    if not 0 <= rope_heads <= heads:
        checks.fail(op, "rope_heads", f"in 0..{heads}", rope_heads)
    return rope_heads
