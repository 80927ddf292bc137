"""Weights prepared once, at load, for the backend that will read them.

Layouts of a [N, K] matrix:
- "rows": the tensor as it is.
- "panels" (CPU): [ceil(N/32), K, 32], zero padded; the 32 rows of a panel side by side for each k.
  bf16 columns are interleaved: 32-bit word j of a k-row holds column j (low half) and column
  j + 16 (high half), so that widening to float32 is a shift and a mask.
- "panels_swiglu" (CPU): panels of 2I rows in `swiglu_order`: [ceil(I/16), K, 32], each with 16 gate
  rows and then their 16 up rows.
- Panels of "int8_dyn" are [panels, ceil(K/4), 32, 4] uint8: stored + 128, four k of a row side by
  side, zeros (128) behind K. One instruction (VNNI's) multiplies such a four with four int8
  activations; unsigned by signed is what it takes, and the 128 costs one sum per activation row.

Quantised formats hold one float32 scale per row beside the matrix, in the order of the rows in
every layout: weight = scale * stored, with scale = max|row| / 127 (int8) or / 448 (fp8, e4m3).
"int8_dyn" is "int8" whose activations are quantised too, by `quantise_activations`.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from ...errors import BackendError
from . import backends, checks

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
QUANTISED = {"int8": torch.int8, "int8_dyn": torch.int8, "fp8": torch.float8_e4m3fn}
PANEL_TYPES = {  # by format, of panels
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "int8_dyn": torch.uint8,
}
CPU_FORMATS = tuple(PANEL_TYPES)
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
PANEL = 32
OFFSET = 128  # of stored weights in panels of "int8_dyn"


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A linear weight [n, k] in one `layout` and `format`; made by `ops.pack_linear`.

    Formats "int8", "int8_dyn" and "fp8" have a scale [n] float32, the others None.
    """

    weight: Tensor
    layout: str
    n: int
    k: int
    format: str
    scale: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Of the matrix and its scale."""
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.k

    def as_rows(self) -> "PackedLinear":
        """The same matrix in layout "rows", in its format."""
        rows = unpack_rows(self.weight, self.layout, self.n, self.k)
        return PackedLinear(rows, "rows", self.n, self.k, self.format, self.scale)

    def unpack(self) -> Tensor:
        """The matrix [n, k] back, in the packed format; a quantised one as float32."""
        rows = self.as_rows().weight
        return rows if self.scale is None else dequantise(rows, self.scale)


@dataclass(frozen=True, eq=False)
class PackedExperts:
    """Expert weights: gate_up [E, 2I, H] (gate rows first), down [E, H, I], and the shared expert's
    pair [2Is, H], [H, Is] or None; made by `ops.pack_experts`.

    In layout "panels" every expert's matrices are packed: gate_up as "panels_swiglu"
    [E, ceil(I/16), H, 32], down as "panels" [E, ceil(H/32), I, 32]; the shared pair likewise. Those
    of "int8_dyn" are [E, ceil(I/16), ceil(H/4), 32, 4] and [E, ceil(H/32), ceil(I/4), 32, 4].
    Formats "int8", "int8_dyn" and "fp8" have scales, float32 per row: gate_up_scale [E, 2I],
    down_scale [E, H], shared_gate_up_scale [2Is], shared_down_scale [H]; the others None.
    """

    gate_up: Tensor
    down: Tensor
    shared_gate_up: Tensor | None
    shared_down: Tensor | None
    layout: str
    format: str
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None
    shared_gate_up_scale: Tensor | None = None
    shared_down_scale: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Of the matrices and their scales."""
        return sum(t.nbytes for t in (*self.matrices, *self.scales) if t is not None)

    @property
    def matrices(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.gate_up, self.down, self.shared_gate_up, self.shared_down

    @property
    def scales(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Of `matrices`, in their order."""
        scales = self.gate_up_scale, self.down_scale
        return *scales, self.shared_gate_up_scale, self.shared_down_scale

    @property
    def device(self) -> torch.device:
        return self.gate_up.device

    @property
    def hidden(self) -> int:
        """H."""
        return self.gate_up.shape[2] if self.down_scale is None else self.down_scale.shape[1]

    def as_rows(self) -> "PackedExperts":
        """The same experts in layout "rows", in their format."""
        rows = unpack_experts(*self.matrices, self.layout, self.scales)
        return PackedExperts(*rows, "rows", self.format, *self.scales)

    def unpack(self) -> "PackedExperts":
        """The same experts in layout "rows"; quantised ones as float32."""
        rows = self.as_rows()
        if self.format not in QUANTISED:
            return rows
        pairs = zip(rows.matrices, rows.scales)
        wide = (None if w is None else dequantise(w, scale) for w, scale in pairs)
        return PackedExperts(*wide, "rows", "fp32")


def format_of(dtype: torch.dtype) -> str | None:
    """The format name of a dtype, or None when no format holds it."""
    return next((name for name, held in FORMATS.items() if held == dtype), None)


def resolve_format(op: str, weight: Tensor, format: str | None, formats: Collection[str]) -> str:
    """`format` if it is one of `formats`; None stands for the weight's own type."""
    checks.floating(op, "weight", weight)
    if format is None:
        return format_of(weight.dtype)
    if format not in formats:
        checks.fail(op, "format", f"one of {', '.join(formats)}", repr(format))
    return format


def native_packing(
    op: str, weight: Tensor, format: str, backend: str | None, formats: Collection[str] = ("fp32", "bf16", "fp16")
) -> ModuleType | None:
    """`_core.cpu`, which packs this weight into panels, or None where rows stay rows.

    formats: those that the op has panels for. Raises BackendError where "cpu" alone was named and
    cannot pack.
    """
    reason = panels_unsupported_reason(weight.device.type, format, backend, formats)
    if reason is None:
        return backends.shared("cpu")
    if backends.named_backends(backend) == ("cpu",):
        raise BackendError(f"{op}: {reason}")
    return None


def panels_unsupported_reason(
    device: str, format: str, backend: str | None = None, formats: Collection[str] = CPU_FORMATS
) -> str | None:
    """Why weights stay rows instead of being packed into panels for the CPU kernels, or None."""
    names = backends.named_backends(backend)
    if names and "cpu" not in names:
        return f"backend {','.join(names)} was named"
    if device != "cpu" or format not in formats:
        return f"the cpu backend does not pack {format} weights of {device} tensors"
    return backends.load("cpu", "gemm")


def packed_bytes(n: int, k: int, format: str, device: str, *, swiglu: bool = False) -> int:
    """Of a matrix [N, K] and its scales, as it would be packed now for this kind of device."""
    panels = panels_unsupported_reason(device, format) is None
    shape = panels_shape(n, k, format, swiglu) if panels else (n, k)
    dtype = QUANTISED.get(format) or FORMATS[format]
    return math.prod(shape) * dtype.itemsize + (4 * n if format in QUANTISED else 0)


def quantised(op: str, weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """`quantise`, of weights that must be finite."""
    stored, scale = quantise(weight.detach(), format)
    if not (scale.is_meta or scale.isfinite().all()):
        checks.fail(op, "every weight", f"finite, to be {format}", "infinity or NaN")
    return stored, scale


def quantise(weight: Tensor, format: str) -> tuple[Tensor, Tensor]:
    """weight [..., N, K] -> stored [..., N, K] and scale [..., N] float32, one matrix at a time.

    scale = max|row| / 127 for int8 (rounded to even, within +-127), / 448 for fp8. A row of zeros
    has scale 0.
    """
    dtype = QUANTISED[format]
    stored = weight.new_empty(weight.shape, dtype=dtype)
    scale = weight.new_empty(weight.shape[:-1], dtype=torch.float32)
    matrices = (t.flatten(end_dim=-3) if t.dim() > 2 else t[None] for t in (weight, stored))
    for w, into, s in zip(*matrices, scale.view(-1, weight.shape[-2])):
        rows, s[:] = _by_largest(w, LARGEST[dtype])
        into.copy_(rows.round_() if dtype == torch.int8 else rows)
    return stored, scale


def quantise_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> stored [M, K] int8 and scale [M] float32, for "int8_dyn".

    In float32, by these operations, so that every backend gets the same integers: a = max|row|,
    stored = round_to_even(x * (127 / a)), scale = a / 127. A row of zeros stays zeros.
    """
    rows, scale = _by_largest(x, LARGEST[torch.int8])
    return rows.round_().to(torch.int8), scale


def _by_largest(x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Rows scaled to +-largest, in float32, and their scales."""
    x = x.float()
    a = x.abs().amax(dim=-1) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    # tensors, not numbers: PyTorch may multiply by a reciprocal instead, which rounds twice
    limit = torch.full_like(a, largest)
    inverse = torch.where(a > 0, limit / a, 0.0)
    return (x * inverse.unsqueeze(-1)).clamp_(-largest, largest), a / limit


def dequantise(weight: Tensor, scale: Tensor) -> Tensor:
    """scale * stored: weight [..., N, K], scale [..., N] -> [..., N, K] in the type of scale."""
    return weight.to(scale.dtype) * scale.unsqueeze(-1)


def swiglu_order(n: int) -> Tensor:
    """Row order of "panels_swiglu": 16 gate rows, then their 16 up rows, and so on; -1 is padding.

    n = 2I rows, gate 0..I-1 then up I..2I-1 -> [ceil(I/16) * 32] row indices.
    """
    width = n // 2
    gate = torch.arange((width + 15) // 16 * 16).view(-1, 16)
    gate = torch.where(gate < width, gate, -1)
    up = torch.where(gate >= 0, gate + width, -1)
    return torch.stack((gate, up), dim=1).flatten()


def panels_shape(N: int, K: int, format: str, swiglu: bool = False) -> tuple[int, ...]:
    """Of a [N, K] matrix in panels."""
    panels = -(-(N // 2) // (PANEL // 2)) if swiglu else -(-N // PANEL)
    return (panels, -(-K // 4), PANEL, 4) if format == "int8_dyn" else (panels, K, PANEL)


def unpack_rows(weight: Tensor, layout: str, n: int, k: int | None = None) -> Tensor:
    """[n, k] from any layout; k is needed where panels are padded in k."""
    if layout == "rows":
        return weight
    if weight.dtype == torch.uint8:
        signed = (weight.to(torch.int16) - OFFSET).to(torch.int8)
        weight = signed.transpose(2, 3).flatten(1, 2)[:, :k]
    rows = weight
    if weight.dtype == torch.bfloat16:
        P, K, _ = weight.shape
        rows = weight.view(P, K, PANEL // 2, 2).transpose(2, 3).reshape(P, K, PANEL)
    rows = rows.transpose(1, 2).reshape(-1, weight.shape[1])
    if layout == "panels":
        return rows[:n].contiguous()
    order = swiglu_order(n).to(weight.device)
    out = rows.new_empty(n, rows.shape[1])
    out[order[order >= 0]] = rows[: len(order)][order >= 0]
    return out


def unpack_experts(
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
    layout: str,
    scales: tuple[Tensor | None, ...] = (None,) * 4,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The four matrices of `PackedExperts` as rows, from any layout; `scales` are theirs."""
    if layout == "rows":
        return gate_up, down, shared_gate_up, shared_down
    H, I, shared = gate_up.shape[2], down.shape[2], 0
    if shared_down is not None:
        shared = shared_down.shape[1]
    if scales[0] is not None:  # panels of int8_dyn are padded in k; their scales tell the sizes
        H, I = scales[1].shape[1], scales[0].shape[1] // 2
        shared = 0 if scales[2] is None else scales[2].shape[0] // 2
    gate_up = torch.stack([unpack_rows(w, "panels_swiglu", 2 * I, H) for w in gate_up])
    down = torch.stack([unpack_rows(w, "panels", H, I) for w in down])
    if shared_gate_up is not None:
        shared_gate_up = unpack_rows(shared_gate_up, "panels_swiglu", 2 * shared, H)
        shared_down = unpack_rows(shared_down, "panels", H, shared)
    return gate_up, down, shared_gate_up, shared_down
